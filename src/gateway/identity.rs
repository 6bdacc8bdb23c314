//! Who asks: from the token to the Pod, and from the Pod to its sandbox.
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::claims;
use super::live::Live;
use super::pods::Pods;
use super::refusal::{Cause, Refusal};
use super::request::Token;
use super::sandboxes::{Sandbox, Sandboxes};
use super::tokens::{PodClaim, Tokens};
use crate::audit::{PodIdentity, now_ms};
use crate::plan::names;

/// Who asks.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The Pod.
    pub pod: PodIdentity,
    /// The sandbox, as it was when it was asked for.
    pub sandbox: Arc<Sandbox>,
    /// What the sandbox does.
    pub live: Arc<Live>,
}

/// How long the watches may lag behind the API server, which has just said that a token is good.
const LAG: Duration = Duration::from_millis(500);

/// Why a Pod is nobody.
struct Stranger {
    refusal: Refusal,
    /// Whether the watches may only not have told yet.
    maybe_not_yet: bool,
}

fn never(message: &str) -> Stranger {
    Stranger { refusal: Refusal::new(Cause::Unauthenticated, message), maybe_not_yet: false }
}

fn not_yet(cause: Cause, message: &str) -> Stranger {
    Stranger { refusal: Refusal::new(cause, message), maybe_not_yet: true }
}

/// Everything that says who asks.
#[derive(Debug)]
pub struct Identity {
    /// Answers of the API server.
    pub tokens: Tokens,
    /// Pods that are alive.
    pub pods: Arc<Pods>,
    /// Sandboxes.
    pub sandboxes: Arc<Sandboxes>,
}

impl Identity {
    /// Who has this token. `may_ask` is asked before the API server is.
    pub async fn authenticate(
        &self,
        token: Option<&Token>,
        may_ask: impl Fn() -> bool,
    ) -> Result<Peer, Refusal> {
        let token = token.ok_or_else(|| {
            let message = "there is no token; agents reach names through the sidecar of their Pod, not the gateway itself";
            Refusal::new(Cause::Unauthenticated, message)
        })?;
        self.expect(token).await?;
        let claim = self.tokens.check(token, may_ask).await?;
        let until = Instant::now() + LAG;
        loop {
            match self.find(&claim) {
                Ok(peer) => return Ok(peer),
                Err(stranger) if stranger.maybe_not_yet && Instant::now() < until => sleep(LAG / 10).await,
                Err(stranger) => return Err(stranger.refusal),
            }
        }
    }

    /// Refuses what is not worth a question to the API server: agents have no token, and would make it answer by inventing
    /// some. One answer for all Pods that are not known, whose names are nobody's business here.
    async fn expect(&self, token: &Token) -> Result<(), Refusal> {
        let refuse = |message: &str| Err(Refusal::new(Cause::Unauthenticated, message));
        let now = u64::try_from(now_ms() / 1000).unwrap_or(0);
        let Some(stated) = claims::stated(token.reveal(), now) else {
            return refuse("the token is not one of a Pod for the gateway, or has expired");
        };
        let until = Instant::now() + LAG;
        loop {
            let known = self.pods.find(&stated.namespace, &stated.name);
            if known.is_some_and(|pod| pod.uid == stated.uid && !pod.ended) {
                return Ok(());
            }
            if Instant::now() >= until {
                return refuse("the token's Pod is not known as a living one of a sandbox");
            }
            sleep(LAG / 10).await;
        }
    }

    /// The Pod of `claim` and its sandbox.
    fn find(&self, claim: &PodClaim) -> Result<Peer, Stranger> {
        let pod = self.pods.find(&claim.namespace, &claim.name).ok_or_else(|| {
            not_yet(Cause::Unauthenticated, "the token's Pod is not known as one of a sandbox")
        })?;
        if pod.uid != claim.uid {
            let message = "the token is of another Pod of the name, which is not there or not known yet";
            return Err(not_yet(Cause::Unauthenticated, message));
        }
        if pod.ended {
            return Err(never("the token's Pod has ended"));
        }
        let unknown = || not_yet(Cause::PolicyUnknown, "the sandbox of the token's Pod is not known here");
        let live = self.sandboxes.live(&pod.sandbox_uid).ok_or_else(unknown)?;
        let sandbox = live.sandbox().ok_or_else(unknown)?;
        let identity = &sandbox.identity;
        // Who may create Pods may claim an owner; the name of a sandbox's Pod follows from the sandbox.
        let hash = names::hash(&identity.namespace, &identity.name, &identity.uid);
        let same = identity.namespace == claim.namespace
            && identity.name == pod.sandbox_name
            && names::object_name(&identity.name, &hash) == claim.name;
        if !same {
            return Err(never("the token's Pod is not the one of its sandbox"));
        }
        match &sandbox.pod_uid {
            Some(uid) if *uid == claim.uid => {}
            Some(_) => return Err(never("the token's Pod is not the one that the operator made")),
            None => {
                let message = "status of the sandbox does not name its Pod yet";
                return Err(not_yet(Cause::PolicyUnknown, message));
            }
        }
        let pod = PodIdentity { name: claim.name.clone(), uid: claim.uid.clone() };
        Ok(Peer { pod, sandbox, live })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::BoxFuture;
    use kube::core::DeserializeGuard;
    use kube::runtime::watcher::Event;

    use super::super::claims::tests::token_of;
    use super::super::limits::Limits;
    use super::super::pods::tests::pod;
    use super::super::sandboxes::tests::{object, rule};
    use super::super::tokens::{Review, Reviewer};
    use super::*;

    /// Says of a token what it says itself, or what it is told to say.
    #[derive(Default)]
    struct Said {
        asked: AtomicUsize,
        says: Mutex<Option<Review>>,
    }

    impl Reviewer for Said {
        fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Review, String>> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let told = self.says.lock().unwrap().clone();
            Box::pin(
                async move { Ok(told.unwrap_or_else(|| Review::Valid(claims::stated(token, 0).unwrap()))) },
            )
        }
    }

    fn identity() -> (Identity, Arc<Said>) {
        let said = Arc::new(Said::default());
        let identity = Identity {
            tokens: Tokens::new(Arc::clone(&said) as Arc<dyn Reviewer>, Arc::default()),
            pods: Arc::default(),
            sandboxes: Arc::new(Sandboxes::new(Limits::default())),
        };
        (identity, said)
    }

    #[tokio::test]
    async fn nobody_is_asked_about_what_is_no_token_of_a_known_pod() {
        let (identity, said) = identity();
        let name = names::object_name("fix", &names::hash("team-a", "fix", "s-1"));
        identity.sandboxes.take(Event::Apply(DeserializeGuard(Ok(object(1, vec![rule("a.example")])))));
        let ask = async |token: &str| {
            let refused = identity.authenticate(Some(&Token::of(token)), || true).await;
            refused.map(|peer| peer.pod.uid).map_err(|refusal| refusal.cause)
        };
        let good = token_of("team-a", &name, "p-1", "c2ln");
        for token in ["x", "a.b.c", good.as_str(), &token_of("team-a", &name, "p-2", "c2ln")] {
            assert_eq!(ask(token).await, Err(Cause::Unauthenticated), "{token}");
        }
        assert_eq!(said.asked.load(Ordering::SeqCst), 0);
        // One that the watch tells of a moment later is not refused.
        let later = async {
            sleep(LAG / 5).await;
            identity.pods.take(Event::Apply(pod(&name, "p-1", "Pending")));
        };
        assert_eq!(tokio::join!(ask(&good), later).0, Ok("p-1".to_owned()));
        assert_eq!(said.asked.load(Ordering::SeqCst), 1);
        // What a token says of itself counts for nothing.
        for review in [
            Review::Invalid("forged".to_owned()),
            Review::Valid(PodClaim { namespace: "team-a".into(), name: "other".into(), uid: "p-3".into() }),
        ] {
            *said.says.lock().unwrap() = Some(review);
            let forged = token_of("team-a", &name, "p-1", &format!("f{}", said.asked.load(Ordering::SeqCst)));
            assert_eq!(ask(&forged).await, Err(Cause::Unauthenticated));
        }
        assert_eq!(said.asked.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn only_the_living_pod_of_a_known_sandbox_is_somebody() {
        let (identity, _) = identity();
        let name = names::object_name("fix", &names::hash("team-a", "fix", "s-1"));
        let cause = async |pod: String| {
            let [namespace, name, uid] = pod.split('/').collect::<Vec<_>>().try_into().unwrap();
            let token = Token::of(&token_of(namespace, name, uid, "c2ln"));
            let refused = identity.authenticate(Some(&token), || true).await;
            refused.map(|peer| peer.sandbox.full_name()).map_err(|refusal| refusal.cause)
        };
        let good = format!("team-a/{name}/p-1");
        assert_eq!(identity.authenticate(None, || true).await.unwrap_err().cause, Cause::Unauthenticated);
        assert_eq!(cause(good.clone()).await, Err(Cause::Unauthenticated), "the Pod is not known");
        identity.pods.take(Event::Apply(pod(&name, "p-1", "Pending")));
        assert_eq!(cause(good.clone()).await, Err(Cause::PolicyUnknown), "the sandbox is not known");
        // The watch lags, and whoever is known to the API server waits for it.
        let later = async {
            sleep(LAG / 5).await;
            let sandbox = DeserializeGuard(Ok(object(1, vec![rule("a.example")])));
            identity.sandboxes.take(Event::Apply(sandbox));
        };
        let (found, ()) = tokio::join!(cause(good.clone()), later);
        assert_eq!(found, Ok("team-a/fix".to_owned()));
        assert_eq!(cause(format!("team-a/{name}/p-0")).await, Err(Cause::Unauthenticated), "an earlier Pod");
        assert_eq!(
            cause(format!("team-b/{name}/p-1")).await,
            Err(Cause::Unauthenticated),
            "another namespace"
        );
        identity.pods.take(Event::Apply(pod(&name, "p-9", "Running")));
        let made_by_another = cause(format!("team-a/{name}/p-9")).await;
        assert_eq!(
            made_by_another,
            Err(Cause::Unauthenticated),
            "a Pod of the name that status does not have"
        );
        identity.pods.take(Event::Apply(pod(&name, "p-1", "Running")));
        identity.pods.take(Event::Apply(pod("claimed", "p-2", "Running")));
        assert_eq!(
            cause("team-a/claimed/p-2".to_owned()).await,
            Err(Cause::Unauthenticated),
            "a claimed owner"
        );
        identity.pods.take(Event::Apply(pod(&name, "p-1", "Failed")));
        assert_eq!(cause(good).await, Err(Cause::Unauthenticated), "it has ended");
    }
}
