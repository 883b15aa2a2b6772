#!/usr/bin/env bash
# Wait for the cloud's notice that it preempts this machine, and drain its Ray node:
#
#   spot_notice.sh aws|gcp
#
# The launcher starts it on every worker; machines that are not spot machines never get a notice.
# METADATA_URL overrides the address of the cloud's metadata service.
set -euo pipefail

exec 9> "${TMPDIR:-/tmp}/spot_notice.${UID}.lock"
flock --nonblock 9 || exit 0 # another process is waiting already

aws_notice() {
    local metadata=${METADATA_URL:-http://169.254.169.254} token
    token=$(curl -sf --max-time 5 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" \
        "$metadata/latest/api/token") || return 1
    curl -sf --max-time 5 -H "X-aws-ec2-metadata-token: $token" \
        "$metadata/latest/meta-data/spot/instance-action" > /dev/null
}

gcp_notice() {
    local metadata=${METADATA_URL:-http://metadata.google.internal}
    [[ $(curl -sf --max-time 5 -H "Metadata-Flavor: Google" \
        "$metadata/computeMetadata/v1/instance/preempted") == TRUE ]]
}

case ${1:-} in
    aws) notice=aws_notice seconds=110 ;;
    gcp) notice=gcp_notice seconds=25 ;;
    *) echo "usage: $0 aws|gcp" >&2 && exit 2 ;;
esac
until "$notice"; do sleep 2; done
echo "the cloud preempts this machine within $seconds s"
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --deadline-remaining-seconds "$seconds" \
    --reason-message "$1 preempts this spot machine"
