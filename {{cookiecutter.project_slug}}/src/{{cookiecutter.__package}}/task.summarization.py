"""The words of the page that depend on what the models are asked to do."""

PROMPT_LABEL = "Text to summarize"
PROMPT_PLACEHOLDER = "Paste a text"
BUTTON = "Summarize"
EXAMPLES = [
    "HOUSTON -- Men have landed and walked on the moon. Two Americans, astronauts of Apollo 11, "
    "steered their fragile four-legged lunar module safely and smoothly to the historic landing "
    "yesterday at 4:17:40 P.M., Eastern daylight time. Neil A. Armstrong, the 38-year-old "
    'commander, radioed to earth and the mission control room here: "Houston, Tranquility Base '
    'here. The Eagle has landed." The first men to reach the moon -- Armstrong and his co-pilot, '
    "Col. Edwin E. Aldrin Jr. of the Air Force -- brought their ship to rest on a level, "
    "rock-strewn plain near the southwestern shore of the arid Sea of Tranquility.",
    "The Great Barrier Reef is the world's largest coral reef system. It is made of over 2,900 "
    "individual reefs and 900 islands that stretch for over 2,300 kilometres along the coast of "
    "Queensland, Australia. The reef can be seen from space. It supports a wide diversity of "
    "life and was selected as a World Heritage Site in 1981. Warmer water, storms and the "
    "crown-of-thorns starfish have cost it half of its coral cover since 1985.",
]
