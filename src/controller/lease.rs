//! Leader election on a `Lease`: a pure decision, and writes guarded by `resourceVersion`.
//!
//! The lease is no lock by itself: a process that was stopped for longer than the lease and then woken up could still
//! write. So every write asks the [`Fence`] first, on the monotonic clock, whether the lease was renewed in time.
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use super::field_managers;

/// What to do with the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is ours: renew it.
    Renew,
    /// It is free, or its holder has not renewed it for its whole duration: take it.
    Acquire,
    /// Another process holds it.
    Wait,
}

/// What this process saw of the lease: a holder is judged by the time since *we* first saw its last renewal, so that
/// clocks of different nodes are never compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    version: String,
    at: Instant,
}

/// Decides about `spec`, last seen to change at `seen`.
pub fn decide(spec: &LeaseSpec, identity: &str, seen: Instant, now: Instant, fallback: Duration) -> Decision {
    match spec.holder_identity.as_deref() {
        None | Some("") => Decision::Acquire,
        Some(holder) if holder == identity => Decision::Renew,
        Some(_) => {
            let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
            let duration = seconds.map_or(fallback, Duration::from_secs);
            if now.saturating_duration_since(seen) > duration { Decision::Acquire } else { Decision::Wait }
        }
    }
}

/// Until when this process may write.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

impl Fence {
    /// Whether the lease was renewed in time.
    pub fn holds(&self) -> bool {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Lets write for `time`.
    #[cfg(test)]
    pub fn open_for(&self, time: Duration) {
        self.set(Some(Instant::now() + time));
    }

    fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

/// One candidate.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    duration: Duration,
    fence: Fence,
    sighting: Option<Sighting>,
}

impl std::fmt::Debug for Elector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Elector").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Elector {
    /// A candidate for the lease `name` in `namespace`, known as `identity`.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: &str,
        duration: Duration,
        fence: Fence,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            duration,
            fence,
            sighting: None,
        }
    }

    /// Waits until the lease is ours. Says by `answered` that the API server was reached, and the lease may be read.
    pub async fn acquire(&mut self, answered: impl Fn()) {
        loop {
            match self.attempt().await {
                Ok(ours) => {
                    answered();
                    if ours {
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "lease not read or written; trying again"),
            }
            tokio::time::sleep(self.duration / 6).await;
        }
    }

    /// Renews the lease until it is lost: then returns, and the process must end.
    pub async fn keep(&mut self) {
        loop {
            tokio::time::sleep(self.duration / 5).await;
            match tokio::time::timeout(self.duration / 3, self.attempt()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => break,
                Ok(Err(error)) => tracing::warn!(%error, "lease not renewed; trying again"),
                Err(_) => tracing::warn!("lease not renewed in time; trying again"),
            }
            if !self.fence.holds() {
                break;
            }
        }
        self.fence.set(None);
    }

    /// Gives the lease up, so that the next process need not wait for it to run out.
    pub async fn release(&mut self) -> Result<(), kube::Error> {
        self.fence.set(None);
        let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        let ours = lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()) == Some(&*self.identity);
        if let (true, Some(spec)) = (ours, lease.spec.as_mut()) {
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            self.api.replace(&self.name, &params(), &lease).await?;
        }
        Ok(())
    }

    /// One round: whether the lease is ours afterwards.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        // The fence counts from before the write: the server's clock can only be later.
        let begun = Instant::now();
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.spec(None)),
            };
            return self.written(self.api.create(&params(), &lease).await, begun);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let seen = match &self.sighting {
            Some(sighting) if sighting.version == version => sighting.at,
            _ => begun,
        };
        self.sighting = Some(Sighting { version, at: seen });
        let spec = lease.spec.take().unwrap_or_default();
        if decide(&spec, &self.identity, seen, begun, self.duration) == Decision::Wait {
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(&spec)));
        // `replace` carries the resourceVersion that was read: of two candidates one gets a conflict.
        self.written(self.api.replace(&self.name, &params(), &lease).await, begun)
    }

    fn written(&self, result: Result<Lease, kube::Error>, begun: Instant) -> Result<bool, kube::Error> {
        match result {
            Ok(_) => {
                self.fence.set(Some(begun + self.duration));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                // Somebody else wrote: the next round shows who. A holder stays so while its fence holds.
                Ok(self.fence.holds())
            }
            Err(error) => Err(error),
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = before.filter(|b| b.holder_identity.as_deref() == Some(&*self.identity));
        let transitions = before.and_then(|b| b.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.duration.as_secs()).ok(),
            acquire_time: ours.and_then(|b| b.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if ours.is_some() { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        }
    }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(field_managers::LEASE.to_owned()), ..PostParams::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(by: &str, seconds: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(by.to_owned()),
            lease_duration_seconds: Some(seconds),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_when_free_or_stale_and_never_before() {
        let seen = Instant::now();
        let at = |s| seen + Duration::from_secs(s);
        let fallback = Duration::from_secs(15);
        for (spec, now, want) in [
            (LeaseSpec::default(), at(0), Decision::Acquire),
            (held("", 15), at(0), Decision::Acquire),
            (held("me", 15), at(0), Decision::Renew),
            (held("me", 15), at(999), Decision::Renew),
            (held("other", 15), at(0), Decision::Wait),
            (held("other", 15), at(15), Decision::Wait),
            (held("other", 15), at(16), Decision::Acquire),
            (held("other", 60), at(59), Decision::Wait),
            (held("other", -1), at(15), Decision::Wait),
            (held("other", -1), at(16), Decision::Acquire),
        ] {
            assert_eq!(decide(&spec, "me", seen, now, fallback), want, "{spec:?}");
        }
    }

    #[test]
    fn the_fence_is_shut_until_the_lease_is_held_and_after_it_ran_out() {
        let fence = Fence::default();
        assert!(!fence.holds());
        fence.set(Some(Instant::now() + Duration::from_secs(5)));
        assert!(fence.holds());
        fence.set(Some(Instant::now()));
        assert!(!fence.holds());
    }
}
