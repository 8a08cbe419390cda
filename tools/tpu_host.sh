#!/usr/bin/env bash
# On every host of a Cloud TPU: install flatten_jax in ~/venv and, if one is named, mount a bucket.
#   tools/tpu_host.sh [BUCKET [MOUNT_POINT]]
# Run again it changes nothing that is already there.
set -euo pipefail
cd "$(dirname "$0")/.."

# The images of Cloud TPU VMs come with Python 3.10; uv brings its own 3.12.
command -v uv >/dev/null || export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
[ -d ~/venv ] || uv venv --python 3.12 ~/venv
VIRTUAL_ENV=~/venv uv pip install --quiet -e '.[train,tpu,gcs]'

bucket=${1:-}
mount=${2:-/mnt/bucket}
if [ -n "$bucket" ] && ! mountpoint --quiet "$mount"; then
    if ! command -v gcsfuse >/dev/null; then
        echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
            sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
        curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
        sudo apt-get -q update && sudo apt-get -qy install gcsfuse
    fi
    sudo mkdir -p "$mount" && sudo chown "$USER" "$mount"
    # Folders that were copied into a flat bucket have no entries of their own; reads are many and small: long-lived
    # metadata, and no limit on the folders that a finished checkpoint renames.
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs -1 --stat-cache-max-size-mb -1 --type-cache-max-size-mb -1 \
        --rename-dir-limit 100000 "$bucket" "$mount"
fi
~/venv/bin/python -c "import flatten_jax; print('flatten_jax', flatten_jax.__version__, 'is ready on', '$(hostname)')"
