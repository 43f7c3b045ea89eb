#!/bin/sh
# Start infinity_emb with folders that this user can write.
#
# Docker creates a missing folder of the host as root, and a container without root cannot take it over. Models that are
# in such a folder are read; without any, downloads go into the container and are lost with it.
set -eu

if ! mkdir -p "$HF_HOME" 2>/dev/null || ! [ -w "$HF_HOME" ]; then
    echo "user $(id -u) cannot write $HF_HOME; mount a named volume, or give the folder to that user (chown $(id -u)), to keep downloads" >&2
    export INFINITY_HOME="${TMPDIR:-/tmp}/infinity"
    [ -d "$HF_HOME/hub" ] || export HF_HOME="$INFINITY_HOME"
fi
exec infinity_emb "$@"
