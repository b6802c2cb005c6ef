# shellcheck shell=bash
# Sourced by apply and upgrade: replaces the containers while webhooks go on arriving.

# The number of containers is counted once: `ps` leaves out one that is just being started, and a scale computed
# from it in between would remove a container.
replace_web_one_by_one() {
    local old olds
    mapfile -t olds < <(docker compose ps --quiet web)
    for old in "${olds[@]}"; do
        # Compose waits for old and new alike; the old ones are healthy anyway.
        docker compose up --detach --no-deps --no-recreate --wait --scale web=$((${#olds[@]} + 1)) web
        docker stop "$old" >/dev/null
        docker rm "$old" >/dev/null
    done
}

replace_containers() {
    local running workers
    running=$(count worker)
    workers=$(setting OPTOUT_WORKERS)
    if [ "$(count web)" -gt 0 ] && has_proxy; then
        replace_web_one_by_one
    else
        echo "no proxy: web is away for a few seconds, and Twilio tries again (docs/how-to/upgrade.md)"
        docker compose up --detach --no-deps --wait --force-recreate web
    fi
    # A worker finishes what it runs; what waits in the queues waits for its successor.
    docker compose up --detach --no-deps --wait --force-recreate \
        --scale worker="$((running > 0 ? running : ${workers:-1}))" worker
    docker compose up --detach --no-deps --wait --force-recreate beat flower console
}
