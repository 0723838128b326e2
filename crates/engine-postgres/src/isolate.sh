# Runs a command that can write into the given folders and nowhere else, in namespaces of its own that have no network:
#
#     unshare --mount --net --propagation private -- sh -c '…' isolate FOLDER... -- COMMAND [ARGUMENT...]
#
# Ends with 125 when something else could still be written.
set -eu
# What autofs waits to mount is no place to write to, and looking at it would mount it.
points=$(grep -v ' - autofs ' /proc/self/mountinfo | cut -d ' ' -f 5)
each() {
    printf '%s\n' "$points" | while IFS= read -r point; do
        point=$(printf '%b.' "$point")
        "$1" "${point%.}"
    done
}
close() {
    mount -o remount,bind,ro -- "$1" || umount -l -- "$1" || true
}
look() {
    if [ -d "$1" ] || [ -f "$1" ]; then
        [ ! -w "$1" ] || { echo "$1 cannot be made read-only" >&2; exit 125; }
    fi
}
open() {
    mount --bind -- "$1" "$1"
    mount -o remount,bind,rw -- "$1"
}
each close 2>/dev/null
each look
# Where shared memory is.
[ ! -d /dev/shm ] || open /dev/shm
while [ "$1" != -- ]; do
    open "$1"
    shift
done
shift
exec "$@"
