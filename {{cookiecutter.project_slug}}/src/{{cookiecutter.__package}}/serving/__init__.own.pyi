from .base import StartError as StartError
from .http.ingress import GradioServer as GradioServer
from .http.launch import Launch as Launch
from .http.settings import HttpSettings as HttpSettings
from .start import main as main
