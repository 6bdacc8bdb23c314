//! Times and amounts.
use std::time::Duration;

use super::Refusals;
use crate::api::v1alpha1::{
    AgentSandboxSpec, GoDuration, QuantityError, Requests, Resources, bytes_of, millicores_of, wrong_bytes,
    wrong_cpu,
};

/// The times of a sandbox, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) timeout: Duration,
    pub(super) startup_timeout: Duration,
    pub(super) ttl_after_finished: Option<Duration>,
}

const HOUR: u64 = 3600;
const SECOND: Duration = Duration::from_secs(1);

/// The times, where all are fine.
pub(super) fn check(spec: &AgentSandboxSpec, refusals: &mut Refusals) -> Option<Limits> {
    let timeout = time(&spec.timeout, SECOND, 168, "spec.timeout", refusals);
    let startup_timeout = time(&spec.startup_timeout, SECOND, 24, "spec.startupTimeout", refusals);
    let ttl = spec
        .ttl_after_finished
        .as_ref()
        .map(|ttl| time(ttl, Duration::ZERO, 8760, "spec.ttlAfterFinished", refusals));
    check_resources(&spec.resources, refusals);
    Some(Limits {
        timeout: timeout?,
        startup_timeout: startup_timeout?,
        ttl_after_finished: match ttl {
            Some(ttl) => Some(ttl?),
            None => None,
        },
    })
}

fn time(
    text: &GoDuration,
    least: Duration,
    most_hours: u64,
    field: &str,
    refusals: &mut Refusals,
) -> Option<Duration> {
    match text.parse() {
        Ok(time) if time >= least && time <= Duration::from_secs(most_hours * HOUR) => Some(time),
        Ok(_) => {
            let least = least.as_secs();
            refusals.invalid(
                field,
                format!("must be a duration from {least}s to {most_hours}h, such as 30m or 1h30m"),
            );
            None
        }
        Err(_) => {
            let shown = crate::policy::shown(text.as_str());
            refusals
                .invalid(field, format!("`{shown}` is not a duration; write it such as 30s, 5m or 1h30m"));
            None
        }
    }
}

fn check_resources(resources: &Resources, refusals: &mut Refusals) {
    let mut amount = |value: Result<i64, QuantityError>,
                      least: i64,
                      shown: &str,
                      field: &str,
                      example: &str,
                      wrong: fn(&str, &str, &str) -> String,
                      text: &str| {
        let field = format!("spec.resources.{field}");
        match value {
            Ok(value) if value >= least => Some(value),
            Ok(_) => {
                refusals.invalid(field, format!("must be at least {shown}, such as {example}"));
                None
            }
            Err(_) => {
                refusals.invalid(field, wrong(text, &format!("at least {shown}"), example));
                None
            }
        }
    };
    let text = &resources.cpu;
    let cpu = amount(millicores_of(text), 10, "10m", "cpu", "500m or 2", wrong_cpu, text);
    let mut bytes = |text: &str, least: i64, shown: &str, field: &str, example: &str| {
        amount(bytes_of(text), least, shown, field, example, wrong_bytes, text)
    };
    let memory = bytes(&resources.memory, 16 << 20, "16Mi", "memory", "512Mi");
    bytes(&resources.ephemeral_storage, 1 << 20, "1Mi", "ephemeralStorage", "1Gi");
    let Requests { cpu: asked_cpu, memory: asked_memory } = resources.requests.clone().unwrap_or_default();
    let asked_memory = asked_memory.and_then(|text| bytes(&text, 0, "0", "requests.memory", "128Mi"));
    let asked_cpu = asked_cpu
        .and_then(|text| amount(millicores_of(&text), 0, "0", "requests.cpu", "100m", wrong_cpu, &text));
    for (asked, limit, name) in [(asked_cpu, cpu, "cpu"), (asked_memory, memory, "memory")] {
        let fits = asked.zip(limit).is_none_or(|(asked, limit)| asked <= limit);
        refusals.check(
            fits,
            &format!("spec.resources.requests.{name}"),
            &format!("must be at most resources.{name}"),
        );
    }
    refusals.check((4..=32_768).contains(&resources.pids), "spec.resources.pids", "must be from 4 to 32768");
}
