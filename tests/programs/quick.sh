# SPDX-License-Identifier: LGPL-2.1-only
# The quick example with the `ckpt` of PATH and any sh: a counter is saved by the checkpoint signal, and goes on.
set -e
t=$(mktemp -d)
cd "$t"
trap 'status=$?; [ $status = 0 ] || cat said screen >&2; rm -rf "$t"; exit $status' EXIT
said() {
  until grep -qx "$1" screen 2> /dev/null; do
    kill -0 "$pid" || exit 9
    sleep 0.1
  done
}
ckpt --version
ckpt -n count.ckpt sh -c 'i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; sleep 0.1; done' > screen 2> said & pid=$!
said 4
kill -TSTP "$pid"
wait "$pid"
ckpt verify count.ckpt > /dev/null
./count.ckpt 2>> said & pid=$!
wait "$pid"
[ "$(cat screen)" = "$(seq 60)" ] || exit 8
echo "it went on"
