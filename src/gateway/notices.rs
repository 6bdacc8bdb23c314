//! What the owner of a sandbox hears of what its agent could not reach: events on the AgentSandbox, at most one a minute of
//! what the gateway refused, one of what is allowed and failed, and one of what the Pod refused.
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Resource};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::live::Live;
use super::refusal::{Cause, Refusal};
use super::sandboxes::Sandbox;
use crate::api::v1alpha1::AgentSandbox;
use crate::egress::wire::Refusals;
use crate::policy::{HostName, Reason, no_help, shown};

const CONTROLLER: &str = "agentsandbox-gateway";

/// Time between two events of one kind for one sandbox.
const EVERY: Duration = Duration::from_mins(1);

/// Reason of an event on what the sandbox may not reach.
const DENIED: &str = "EgressDenied";

/// Reason of an event on what it may reach, and could not.
const FAILED: &str = "EgressFailed";

/// Other targets that one event names at most.
const NAMED: usize = 8;

/// Notices that wait at most; the records have all refusals.
const WAITING: usize = 256;

/// Time for one event.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest note that the API server takes.
const MAX_NOTE: usize = 1024;

/// What the owner of one sandbox was told. Each kind has its own minute: a dull refusal of one must not hide another's.
#[derive(Debug, Default)]
pub struct Told {
    denied: Kind,
    failed: Kind,
    in_pod: Kind,
}

/// When the owner was told last of one kind, and what has come since then.
#[derive(Debug, Default)]
struct Kind(Mutex<(Option<Instant>, Unheard)>);

/// What the owner was not told of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unheard {
    count: u64,
    /// Some of the targets, each once.
    targets: Vec<String>,
}

impl Kind {
    /// Counts `count` times that something was not reached, `target` the last. `Some` if the owner should be told of it now,
    /// with what came before it that he was not told of.
    fn count(&self, now: Instant, count: u64, target: &str) -> Option<Unheard> {
        let mut kind = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, unheard) = &mut *kind;
        unheard.count = unheard.count.saturating_add(count);
        if last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            if unheard.targets.len() < NAMED && unheard.targets.iter().all(|known| known != target) {
                unheard.targets.push(target.to_owned());
            }
            return None;
        }
        *last = Some(now);
        let Unheard { count, mut targets } = std::mem::take(unheard);
        targets.retain(|known| known != target);
        Some(Unheard { count: count.saturating_sub(1), targets })
    }
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whose sandbox.
    pub sandbox: Arc<Sandbox>,
    /// `EgressDenied` or `EgressFailed`.
    pub reason: &'static str,
    /// What was not reached, and why.
    pub note: String,
}

/// Takes notices.
#[derive(Clone, Debug)]
pub struct Notices(mpsc::Sender<Notice>);

/// The notices, and where they arrive.
pub fn channel() -> (Notices, mpsc::Receiver<Notice>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Notices(sender), receiver)
}

impl Notices {
    /// Tells the owner that `target` was refused by the gateway or could not be reached, unless he was told of another such
    /// within the minute.
    pub fn refused(&self, live: &Live, sandbox: &Arc<Sandbox>, target: &str, refusal: &Refusal) {
        let (kind, reason, verb) = match refusal.cause {
            cause if cause.is_denial() => (&live.told().denied, DENIED, "refused"),
            Cause::ResolutionFailed | Cause::DialFailed => (&live.told().failed, FAILED, "not reached"),
            _ => return,
        };
        let Some(unheard) = kind.count(Instant::now(), 1, target) else { return };
        let note = format!("{target} {verb} ({}): {}", refusal.cause.word(), refusal.message);
        self.send(sandbox, reason, note, &unheard, &format!("{verb} by the gateway"));
    }

    /// Tells him of what the Pod refused without asking the gateway, as its sidecar says; once a minute as well.
    pub fn refused_in_pod(&self, live: &Live, sandbox: &Arc<Sandbox>, refusals: &Refusals) {
        let target = shown(&refusals.target);
        let Some(unheard) = live.told().in_pod.count(Instant::now(), refusals.count.max(1), &target) else {
            return;
        };
        let mut note = format!("{target} refused in the Pod ({})", shown(&refusals.reason));
        if refusals.reason == Reason::NoRule.as_str()
            && let Ok(name) = refusals.target.parse::<HostName>()
        {
            note.push_str(&match no_help(&name) {
                Some(why) => format!(": no rule of this sandbox names it, and a host rule would not help: it {why}"),
                None => format!(
                    ": no rule of this sandbox names it; to allow it, add {{host: {name}, ports: [443]}} to spec.network.egress, with the ports that are meant"
                ),
            });
        }
        self.send(sandbox, DENIED, note, &unheard, "refused in the Pod");
    }

    fn send(
        &self,
        sandbox: &Arc<Sandbox>,
        reason: &'static str,
        mut note: String,
        unheard: &Unheard,
        what: &str,
    ) {
        if unheard.count > 0 {
            note.push_str(&format!("; {} more {what} since the last such event", unheard.count));
        }
        if !unheard.targets.is_empty() {
            note.push_str(&format!(", among them {}", unheard.targets.join(", ")));
        }
        let end = (0..=note.len().min(MAX_NOTE)).rev().find(|end| note.is_char_boundary(*end));
        note.truncate(end.unwrap_or(0));
        // When too many wait, this one is left out.
        let _ = self.0.try_send(Notice { sandbox: Arc::clone(sandbox), reason, note });
    }
}

/// Publishes notices until nobody sends any.
pub async fn publish(client: Client, instance: &str, mut notices: mpsc::Receiver<Notice>) {
    while let Some(notice) = notices.recv().await {
        let api = Api::<Event>::namespaced(client.clone(), &notice.sandbox.identity.namespace);
        let event = event(&notice, instance, Timestamp::now());
        match timeout(PATIENCE, api.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "event not published"),
            Err(_) => tracing::warn!("event not published: the API server does not answer in time"),
        }
    }
}

fn event(notice: &Notice, instance: &str, now: Timestamp) -> Event {
    let identity = &notice.sandbox.identity;
    Event {
        metadata: ObjectMeta {
            // What is generated is put behind it: a dot there would not be a name for the API server.
            generate_name: Some(format!("{}-", identity.name)),
            namespace: Some(identity.namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        action: Some("Connect".to_owned()),
        reason: Some(notice.reason.to_owned()),
        note: Some(notice.note.clone()),
        type_: Some("Warning".to_owned()),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(AgentSandbox::api_version(&()).into_owned()),
            kind: Some(AgentSandbox::kind(&()).into_owned()),
            name: Some(identity.name.clone()),
            namespace: Some(identity.namespace.clone()),
            uid: Some(identity.uid.clone()),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::Limits;
    use super::super::sandboxes::tests::sandbox;
    use super::*;

    #[test]
    fn the_owner_hears_of_denials_once_a_minute() {
        let sandbox = Arc::new(sandbox(1, &[]));
        let live = Live::new(Arc::clone(&sandbox), &Limits::default());
        let (notices, mut received) = channel();
        let tell = |cause| {
            let refusal = Refusal::new(cause, "\u{e4}".repeat(1000));
            notices.refused(&live, &sandbox, "evil.example:443", &refusal);
        };
        tell(Cause::Draining);
        assert!(received.try_recv().is_err(), "another gateway may take it");
        tell(Cause::AddressRefused);
        tell(Cause::AddressRefused);
        let notice = received.try_recv().unwrap();
        assert!(
            notice.note.starts_with("evil.example:443 refused (AddressRefused)") && notice.note.len() <= 1024
        );
        assert!(received.try_recv().is_err());
        let event = event(&notice, "gateway-0", Timestamp::UNIX_EPOCH);
        assert_eq!(event.regarding.unwrap().uid.as_deref(), Some("s-1"));
        assert_eq!(event.metadata.generate_name.as_deref(), Some("fix-"));
    }

    #[test]
    fn the_owner_hears_of_what_is_allowed_and_fails() {
        let sandbox = Arc::new(sandbox(1, &[]));
        let live = Live::new(Arc::clone(&sandbox), &Limits::default());
        let (notices, mut received) = channel();
        for (cause, reason, note) in [
            (Cause::ResolutionFailed, "EgressFailed", "a.example:443 not reached (ResolutionFailed): no"),
            (Cause::Policy(Reason::NoRule), "EgressDenied", "a.example:443 refused (NoRule): no"),
        ] {
            notices.refused(&live, &sandbox, "a.example:443", &Refusal::new(cause, "no"));
            let notice = received.try_recv().unwrap();
            assert_eq!((notice.reason, notice.note.as_str()), (reason, note));
        }
        notices.refused(&live, &sandbox, "b.example:443", &Refusal::new(Cause::DialFailed, "no"));
        assert!(received.try_recv().is_err(), "failures have one minute together");
    }

    #[test]
    fn the_owner_hears_once_a_minute() {
        let (kind, start) = (Kind::default(), Instant::now());
        let unheard = |count, targets: &[&str]| {
            Some(Unheard { count, targets: targets.iter().map(ToString::to_string).collect() })
        };
        assert_eq!(kind.count(start, 1, "a"), unheard(0, &[]));
        for (target, count) in [("a", 3), ("b", 1), ("b", 1), ("c", 1)] {
            assert_eq!(kind.count(start + Duration::from_secs(59), count, target), None);
        }
        assert_eq!(kind.count(start + Duration::from_secs(60), 1, "a"), unheard(6, &["b", "c"]));
        assert_eq!(kind.count(start + Duration::from_secs(120), 1, "a"), unheard(0, &[]));
        for n in 0..1000 {
            assert_eq!(kind.count(start + Duration::from_secs(121), 1, &n.to_string()), None);
        }
        let Unheard { count, targets } = kind.count(start + Duration::from_mins(4), 1, "a").unwrap();
        assert_eq!((count, targets.len()), (1000, NAMED));
    }

    #[test]
    fn neither_kind_of_refusal_hides_the_other() {
        let sandbox = Arc::new(sandbox(1, &[]));
        let (notices, mut received) = channel();
        let by_gateway = |live: &Live| {
            let refusal = Refusal::new(Cause::AddressRefused, "it is private");
            notices.refused(live, &sandbox, "a.example:443", &refusal);
        };
        let by_pod = |live: &Live| {
            let refusals = Refusals { count: 2, target: "b.example".into(), reason: "NoRule".into() };
            notices.refused_in_pod(live, &sandbox, &refusals);
        };
        let gateway_first = Live::new(Arc::clone(&sandbox), &Limits::default());
        (0..3).for_each(|_| by_gateway(&gateway_first));
        (0..3).for_each(|_| by_pod(&gateway_first));
        let pod_first = Live::new(Arc::clone(&sandbox), &Limits::default());
        (0..3).for_each(|_| by_pod(&pod_first));
        (0..3).for_each(|_| by_gateway(&pod_first));
        let told: Vec<String> =
            std::iter::from_fn(|| received.try_recv().ok()).map(|told| told.note).collect();
        let [first, second, third, fourth] = told.as_slice() else { panic!("{told:?}") };
        for (of_gateway, of_pod) in [(first, second), (fourth, third)] {
            assert_eq!(of_gateway, "a.example:443 refused (AddressRefused): it is private");
            assert!(of_pod.starts_with("b.example refused in the Pod (NoRule)"), "{of_pod}");
            assert!(of_pod.ends_with("; 1 more refused in the Pod since the last such event"), "{of_pod}");
        }
        for live in [gateway_first, pod_first] {
            let later = Instant::now() + EVERY;
            let unheard = |kind: &Kind| kind.count(later, 1, "").map(|unheard| unheard.count);
            assert_eq!((unheard(&live.told().denied), unheard(&live.told().in_pod)), (Some(2), Some(4)));
        }
    }

    #[test]
    fn the_owner_hears_of_what_the_pod_refused() {
        let sandbox = Arc::new(sandbox(1, &[]));
        let (notices, mut received) = channel();
        for (target, reason, note) in [
            (
                "evil.example",
                "NoRule",
                "evil.example refused in the Pod (NoRule): no rule of this sandbox names it; to allow it, add {host: evil.example, ports: [443]} to spec.network.egress, with the ports that are meant; 6 more refused in the Pod since the last such event",
            ),
            (
                "\u{1b}[2J:1",
                "InvalidName\n",
                "\\u{1b}[2J:1 refused in the Pod (InvalidName\\n); 6 more refused in the Pod since the last such event",
            ),
        ] {
            let live = Live::new(Arc::clone(&sandbox), &Limits::default());
            let refusals = Refusals { count: 7, target: target.into(), reason: reason.into() };
            notices.refused_in_pod(&live, &sandbox, &refusals);
            notices.refused_in_pod(&live, &sandbox, &refusals);
            assert_eq!(received.try_recv().unwrap().note, note);
            assert!(received.try_recv().is_err(), "once a minute");
        }
    }
}
