# shellcheck shell=bash
# Sourced by the scripts of this folder: the settings in .env, and docker compose with the deployment's files.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# setting NAME: the value from the environment, else from .env, else nothing.
setting() {
    if [ -n "${!1-}" ]; then
        printf '%s\n' "${!1}"
    elif [ -r .env ]; then
        sed -n "s/^[[:space:]]*$1[[:space:]]*=[[:space:]]*//p" .env | tail -n 1 |
            sed -e 's/[[:space:]]#.*//' -e 's/[[:space:]]*$//' -e "s/^\([\"']\)\(.*\)\1\$/\2/"
    fi
}

# remember NAME VALUE: from now on, also for a docker compose that somebody types.
remember() {
    export "$1=$2"
    touch .env
    cp -p .env .env.new
    {
        grep -v "^[[:space:]]*$1[[:space:]]*=" .env || true
        printf '%s=%s\n' "$1" "$2"
    } >.env.new
    mv .env.new .env
}

if [ -z "$(setting OPTOUT_DEPLOYMENT)" ]; then
    echo "There is no deployment here. Create one: make deployment. To try the demo: docker compose up" >&2
    exit 1
fi

# Always the deployment's files, and never docker-compose.override.yml, which is the demo's.
COMPOSE_FILE=$(setting COMPOSE_FILE)
export COMPOSE_FILE=${COMPOSE_FILE:-docker-compose.yml}

# Containers and volumes belong to the project's name: two deployments with one name would replace each other's.
name=$(setting COMPOSE_PROJECT_NAME)
while IFS= read -r elsewhere; do
    if [ -d "$elsewhere" ] && ! [ "$elsewhere" -ef . ]; then
        echo "The containers of project ${name:-optout} belong to the deployment in $elsewhere." >&2
        echo "Set COMPOSE_PROJECT_NAME in .env to another name, and OPTOUT_WEB_PORT to another port." >&2
        exit 1
    fi
done < <(docker ps --all --filter "label=com.docker.compose.project=${name:-optout}" \
    --format '{{.Label "com.docker.compose.project.working_dir"}}' | sort -u)

# Images of a registry are pulled, others are built.
get_images() {
    case $(setting OPTOUT_IMAGE) in
    */*) docker compose pull web worker ;;
    *) docker compose build ;;
    esac
}
count() { docker compose ps --quiet "$1" | wc -l; }
# Not grep -q: it would end first, and under pipefail the broken pipe of docker would count as "no".
has_proxy() { docker compose config --services | grep -x proxy >/dev/null; }

# One published port cannot belong to several web containers: a proxy takes it.
webs=$(setting OPTOUT_WEBS)
if [ "${webs:-1}" -gt 1 ] && ! has_proxy; then
    remember COMPOSE_FILE "$COMPOSE_FILE:docker-compose.scale.yml"
fi
