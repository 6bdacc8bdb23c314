//! Which Pod a token is of: the API server says so, and its answers are kept for a while.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::timeout;

use super::refusal::{Cause, Refusal};
use super::request::Token;
use crate::egress::wire::AUDIENCE;
use crate::telemetry::GatewayMetrics;

/// How long a good answer is believed. A Pod that is gone is noticed earlier, by the watch.
const GOOD_FOR: Duration = Duration::from_mins(1);

/// How long a good answer is believed while the API server cannot be asked: as long as tokens live.
pub const GOOD_WHILE_AWAY: Duration = Duration::from_mins(10);

/// How long a bad answer is believed.
const BAD_FOR: Duration = Duration::from_secs(5);

/// Answers that are kept.
const MAX_ANSWERS: usize = 10_000;

/// Questions to the API server at a time.
const MAX_QUESTIONS: usize = 32;

/// Time for one question.
const PATIENCE: Duration = Duration::from_secs(5);

/// The Pod that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodClaim {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// What the API server says of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Review {
    /// It is good, and of this Pod.
    Valid(PodClaim),
    /// It is not, for this reason.
    Invalid(String),
}

/// Says what a token is.
pub trait Reviewer: Send + Sync + 'static {
    /// Asks; `Err` when there is no answer.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Review, String>>;
}

/// Asks the API server.
pub struct ApiServer(pub Client);

impl Reviewer for ApiServer {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Review, String>> {
        Box::pin(async move {
            let question = TokenReview {
                spec: TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: token.to_owned() },
                ..TokenReview::default()
            };
            let api = Api::<TokenReview>::all(self.0.clone());
            match api.create(&PostParams::default(), &question).await {
                Ok(answer) => Ok(read(answer)),
                Err(kube::Error::Api(status)) => Err(status.message.clone()),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}

fn read(answer: TokenReview) -> Review {
    let invalid = |why: &str| Review::Invalid(why.to_owned());
    let Some(status) = answer.status else { return invalid("the API server says nothing of the token") };
    if status.authenticated != Some(true) {
        return Review::Invalid(status.error.unwrap_or_else(|| "the token is not valid".to_owned()));
    }
    // An API server that knows nothing of audiences would call any token good.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return invalid("the token is for another audience");
    }
    status
        .user
        .as_ref()
        .and_then(claim)
        .map_or_else(|| invalid("the token is not bound to a Pod"), Review::Valid)
}

fn claim(user: &UserInfo) -> Option<PodClaim> {
    let only = |key: &str| match user.extra.as_ref()?.get(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    let account = user.username.as_deref()?.strip_prefix("system:serviceaccount:")?;
    Some(PodClaim {
        namespace: account.split_once(':')?.0.to_owned(),
        name: only("authentication.kubernetes.io/pod-name")?,
        uid: only("authentication.kubernetes.io/pod-uid")?,
    })
}

/// The answers. Whoever asks for a token that is being asked for waits for that answer.
pub struct Tokens {
    reviewer: Arc<dyn Reviewer>,
    answers: Mutex<HashMap<[u8; 32], Arc<Answer>>>,
    questions: Semaphore,
    metrics: Arc<GatewayMetrics>,
}

#[derive(Default)]
struct Answer(AsyncMutex<Option<(Instant, Review)>>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Tokens")
    }
}

impl Tokens {
    /// Nothing is known yet.
    pub fn new(reviewer: Arc<dyn Reviewer>, metrics: Arc<GatewayMetrics>) -> Self {
        let questions = Semaphore::new(MAX_QUESTIONS);
        Self { reviewer, answers: Mutex::default(), questions, metrics }
    }

    /// The Pod that `token` is of. `may_ask` is asked before the API server is, and only then.
    pub async fn check(&self, token: &Token, may_ask: impl Fn() -> bool) -> Result<PodClaim, Refusal> {
        let key: [u8; 32] = Sha256::digest(token.reveal().as_bytes()).into();
        let answer = self.answer(key);
        let mut kept = answer.0.lock().await;
        if let Some((when, review)) = kept.as_ref()
            && when.elapsed() < fresh_for(review)
        {
            self.metrics.reviewed("cached");
            return accept(review);
        }
        let said = if may_ask() {
            self.ask(token).await
        } else {
            Err("too many unknown tokens come from this address".to_owned())
        };
        match said {
            Ok(review) => {
                self.metrics.reviewed(if matches!(review, Review::Valid(_)) { "valid" } else { "invalid" });
                let result = accept(&review);
                *kept = Some((Instant::now(), review));
                result
            }
            Err(error) => {
                self.metrics.reviewed("error");
                match kept.as_ref() {
                    Some((when, review @ Review::Valid(_))) if when.elapsed() < GOOD_WHILE_AWAY => {
                        accept(review)
                    }
                    _ => {
                        let message = format!("the token cannot be checked now: {error}");
                        Err(Refusal::new(Cause::Unverifiable, message))
                    }
                }
            }
        }
    }

    async fn ask(&self, token: &Token) -> Result<Review, String> {
        let asked = timeout(PATIENCE, async {
            let _turn = self.questions.acquire().await.map_err(|error| error.to_string())?;
            self.reviewer.review(token.reveal()).await
        });
        asked.await.unwrap_or_else(|_| Err("the API server does not answer in time".to_owned()))
    }

    /// The place of the answer for `key`. When all places are taken, those that nobody waits for and that are stale are
    /// given up, and else the answer is not kept.
    fn answer(&self, key: [u8; 32]) -> Arc<Answer> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = answers.get(&key) {
            return Arc::clone(answer);
        }
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, answer| match answer.0.try_lock() {
                Ok(kept) => kept.as_ref().is_some_and(|(when, review)| when.elapsed() < kept_for(review)),
                Err(_) => true,
            });
        }
        let answer = Arc::new(Answer::default());
        if answers.len() < MAX_ANSWERS {
            answers.insert(key, Arc::clone(&answer));
        }
        answer
    }
}

fn fresh_for(review: &Review) -> Duration {
    match review {
        Review::Valid(_) => GOOD_FOR,
        Review::Invalid(_) => BAD_FOR,
    }
}

/// Time for which an answer is worth its place: a good one is of use while the API server is away.
fn kept_for(review: &Review) -> Duration {
    match review {
        Review::Valid(_) => GOOD_WHILE_AWAY,
        Review::Invalid(_) => BAD_FOR,
    }
}

fn accept(review: &Review) -> Result<PodClaim, Refusal> {
    match review {
        Review::Valid(claim) => Ok(claim.clone()),
        Review::Invalid(why) => Err(Refusal::new(Cause::Unauthenticated, why.clone())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use k8s_openapi::api::authentication::v1::TokenReviewStatus;

    use super::*;

    struct Fake {
        asked: AtomicUsize,
        away: Mutex<bool>,
    }

    impl Reviewer for Fake {
        fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Review, String>> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let away = *self.away.lock().unwrap();
            let token = token.to_owned();
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let claim =
                    PodClaim { namespace: "team-a".into(), name: token.clone(), uid: format!("u-{token}") };
                match token.as_str() {
                    _ if away => Err("connection refused".to_owned()),
                    "bad" => Ok(Review::Invalid("expired".to_owned())),
                    _ => Ok(Review::Valid(claim)),
                }
            })
        }
    }

    fn tokens() -> (Arc<Tokens>, Arc<Fake>) {
        let fake = Arc::new(Fake { asked: AtomicUsize::new(0), away: Mutex::new(false) });
        (Arc::new(Tokens::new(Arc::clone(&fake) as Arc<dyn Reviewer>, Arc::default())), fake)
    }

    #[tokio::test]
    async fn one_question_serves_all_who_ask() {
        let (tokens, fake) = tokens();
        let asking = (0..50).map(|_| {
            let tokens = Arc::clone(&tokens);
            tokio::spawn(async move { tokens.check(&Token::of("a"), || true).await })
        });
        for asked in asking.collect::<Vec<_>>() {
            assert_eq!(asked.await.unwrap().unwrap().uid, "u-a");
        }
        assert_eq!(tokens.check(&Token::of("bad"), || true).await.unwrap_err().cause, Cause::Unauthenticated);
        assert_eq!(tokens.check(&Token::of("bad"), || true).await.unwrap_err().cause, Cause::Unauthenticated);
        assert_eq!(fake.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn while_the_api_server_is_away_only_the_known_pass() {
        let (tokens, fake) = tokens();
        tokens.check(&Token::of("a"), || true).await.unwrap();
        *fake.away.lock().unwrap() = true;
        // As if the minute were over.
        let answer = tokens.answer(Sha256::digest("a").into());
        let then = Instant::now().checked_sub(GOOD_FOR).unwrap();
        answer.0.lock().await.as_mut().unwrap().0 = then;
        assert!(tokens.check(&Token::of("a"), || true).await.is_ok());
        answer.0.lock().await.as_mut().unwrap().0 = then.checked_sub(GOOD_WHILE_AWAY).unwrap();
        assert_eq!(tokens.check(&Token::of("a"), || true).await.unwrap_err().cause, Cause::Unverifiable);
        assert_eq!(tokens.check(&Token::of("b"), || true).await.unwrap_err().cause, Cause::Unverifiable);
    }

    #[tokio::test]
    async fn who_brings_too_many_unknown_tokens_may_still_use_a_known_one() {
        let (tokens, fake) = tokens();
        tokens.check(&Token::of("a"), || true).await.unwrap();
        assert!(tokens.check(&Token::of("a"), || false).await.is_ok());
        let refused = tokens.check(&Token::of("b"), || false).await.unwrap_err();
        assert_eq!(refused.cause, Cause::Unverifiable);
        assert_eq!(fake.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn answers_are_bounded() {
        let (tokens, _) = tokens();
        for index in 0..MAX_ANSWERS + 100 {
            drop(tokens.answer(Sha256::digest(index.to_string()).into()));
        }
        assert!(tokens.answers.lock().unwrap().len() <= MAX_ANSWERS);
        assert!(tokens.check(&Token::of("a"), || true).await.is_ok());
    }

    fn answered(audiences: &[&str], username: &str, extra: &[(&str, &[&str])]) -> Review {
        let extra: BTreeMap<String, Vec<String>> = extra
            .iter()
            .map(|(key, values)| {
                let key = format!("authentication.kubernetes.io/{key}");
                (key, values.iter().map(|value| (*value).to_owned()).collect())
            })
            .collect();
        read(TokenReview {
            status: Some(TokenReviewStatus {
                authenticated: Some(true),
                audiences: Some(audiences.iter().map(|a| (*a).to_owned()).collect()),
                user: Some(UserInfo {
                    username: Some(username.to_owned()),
                    extra: Some(extra),
                    ..UserInfo::default()
                }),
                error: None,
            }),
            ..TokenReview::default()
        })
    }

    #[test]
    fn only_a_pods_token_for_the_gateway_is_good() {
        let account = "system:serviceaccount:team-a:default";
        let pod: &[(&str, &[&str])] = &[("pod-name", &["fix-0"]), ("pod-uid", &["u-1"])];
        let claim = PodClaim { namespace: "team-a".into(), name: "fix-0".into(), uid: "u-1".into() };
        assert_eq!(answered(&[AUDIENCE], account, pod), Review::Valid(claim));
        for (audiences, user, extra) in [
            (&["https://kubernetes.default.svc"][..], account, pod),
            (&[], account, pod),
            (&[AUDIENCE], "kubernetes-admin", pod),
            (&[AUDIENCE], account, &[]),
            (&[AUDIENCE], account, &[("pod-name", &["fix-0"])]),
            (&[AUDIENCE], account, &[("pod-name", &["fix-0"]), ("pod-uid", &["u-1", "u-2"])]),
        ] {
            assert!(matches!(answered(audiences, user, extra), Review::Invalid(_)), "{audiences:?} {user}");
        }
        assert!(matches!(read(TokenReview::default()), Review::Invalid(_)));
    }
}
