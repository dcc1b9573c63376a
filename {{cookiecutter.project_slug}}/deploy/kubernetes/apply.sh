#!/bin/sh
# Deploys an image by its digest, and waits until it serves all traffic:
# sh deploy/kubernetes/apply.sh staging registry.example.com/page@sha256:…
set -eu
name={{ cookiecutter.project_slug | slugify }}
namespace=$name
[ "$1" = production ] || namespace=$name-$1
cd "$(dirname "$0")/overlays/$1"

kustomize edit set image "page=$2"
kubectl apply --kustomize .

service() { kubectl --namespace "$namespace" "$@"; }
generation=$(service get rayservice "$name" --output 'jsonpath={.metadata.generation}')
service wait rayservice "$name" --timeout 5m --for "jsonpath={.status.observedGeneration}=$generation"
# If this starts an upgrade, wait until it has finished. Then wait until the service is ready.
service wait rayservice "$name" --timeout 30m --for condition=UpgradeInProgress=false
service wait rayservice "$name" --timeout 30m --for condition=Ready
