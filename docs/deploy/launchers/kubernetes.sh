#!/bin/sh
# Runs the words it is given in a pod, and connects its standard input and output to ours.
# Beside it lies kubernetes-pod.json; LEPTON_IMAGE names the image, by its digest.
set -eu
pod=lepton-trainer
here=$(dirname "$0")
# One trainer at a time: what an agent that was killed has left must go first.
kubectl --namespace lepton delete pod "$pod" --ignore-not-found --now >&2
exec kubectl --namespace lepton run "$pod" --image="${LEPTON_IMAGE:?}" --restart=Never \
  --stdin --rm --quiet --override-type=strategic \
  --overrides="$(cat "$here/kubernetes-pod.json")" --command -- "$@"
