//! From a name to its addresses: by a resolver of the gateway's own, so that nobody else chooses where a connection
//! leads.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answers::{Addresses, Answers};
use super::families::Families;
use crate::policy::HostName;

/// How long the answer of the one family waits for the other's (RFC 8305, section 3).
const OTHER_FAMILY: Duration = Duration::from_millis(50);

/// Why there are no addresses.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is no such name, or it has no address.
    #[error("{0} has no address")]
    Nothing(HostName),
    /// The resolvers did not answer, or with an error.
    #[error("{0} cannot be resolved now: {1}")]
    Failed(HostName, String),
}

/// The resolver.
#[derive(Debug)]
pub struct Resolver {
    inner: TokioResolver,
    answers: Answers,
    families: Families,
    patience: Duration,
}

impl Resolver {
    /// Asks `servers`, or those of `/etc/resolv.conf` where there are none. One answer has to come within `patience`.
    pub fn new(servers: &[SocketAddr], patience: Duration) -> Result<Self, NetError> {
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.timeout = (patience / 3).max(Duration::from_millis(100));
        options.attempts = 2;
        // It would keep whole answers, however large they are.
        options.cache_size = 0;
        // Names of this Pod are none of a sandbox.
        options.use_hosts_file = ResolveHosts::Never;
        options.try_tcp_on_error = true;
        Ok(Self {
            inner: builder.build()?,
            answers: Answers::default(),
            families: Families::default(),
            patience,
        })
    }

    /// The addresses of `name` in the order in which they are tried. The name is asked for as it stands: no search
    /// domain is added, and there is always at least one address. Name servers are asked as far as there is `room`.
    pub async fn resolve(&self, name: &HostName, room: &Semaphore) -> Result<Vec<IpAddr>, ResolveError> {
        let failed = |error: String| ResolveError::Failed(name.clone(), error);
        let full = Name::from_ascii(format!("{name}.")).map_err(|error| failed(error.to_string()))?;
        let found = timeout(self.patience, self.both(name, full, room)).await;
        let (v6, v4) = found.map_err(|_| failed("there is no answer in time".to_owned()))?;
        let addresses = interleave(addresses(&v6), addresses(&v4));
        if !addresses.is_empty() {
            return Ok(addresses);
        }
        let error = [v4, v6].into_iter().find_map(Result::err);
        Err(error.map_or_else(|| ResolveError::Nothing(name.clone()), |error| failed(error.to_string())))
    }

    /// The answers for both families. One that has addresses does not wait long for the other, and not at all for one
    /// that was not there a moment ago.
    async fn both(&self, host: &HostName, name: Name, room: &Semaphore) -> (Answer, Answer) {
        let v6 = self.ask(host, &name, RecordType::AAAA, room);
        let v4 = self.ask(host, &name, RecordType::A, room);
        tokio::pin!(v6, v4);
        match self.families.lacking(&name, Instant::now()) {
            Some(RecordType::AAAA) => {
                let (v4, v6) = one_by_one(v4, v6).await;
                return (v6, v4);
            }
            Some(_) => return one_by_one(v6, v4).await,
            None => {}
        }
        let (v6, v4) = tokio::select! {
            v6 = &mut v6 => {
                let v4 = if has_addresses(&v6) { soon(v4).await } else { v4.await };
                (v6, v4)
            }
            v4 = &mut v4 => {
                let v6 = if has_addresses(&v4) { soon(v6).await } else { v6.await };
                (v6, v4)
            }
        };
        // Only what the name server said it does not have: one that is late or fails may have it the next time.
        if has_addresses(&v4) && has_none(&v6) {
            self.families.lacks(name.clone(), RecordType::AAAA, Instant::now());
        } else if has_addresses(&v6) && has_none(&v4) {
            self.families.lacks(name.clone(), RecordType::A, Instant::now());
        }
        (v6, v4)
    }

    /// The answer for one family, from memory where that has it.
    async fn ask(&self, host: &HostName, name: &Name, family: RecordType, room: &Semaphore) -> Answer {
        if let Some(addresses) = self.answers.get(host, family, Instant::now()) {
            return Ok(addresses);
        }
        let _place = room.acquire().await.map_err(|_| NetError::Busy)?;
        let answer = self.inner.lookup(name.clone(), family).await;
        self.answers.take(host, family, answer, Instant::now())
    }
}

type Answer = Result<Addresses, NetError>;

/// The answer for one family, and for the other only if that one has no address.
async fn one_by_one(
    likely: impl Future<Output = Answer>,
    other: impl Future<Output = Answer>,
) -> (Answer, Answer) {
    let found = likely.await;
    let other = if has_addresses(&found) { Err(NetError::Timeout) } else { other.await };
    (found, other)
}

async fn soon(answer: impl Future<Output = Answer>) -> Answer {
    timeout(OTHER_FAMILY, answer).await.unwrap_or(Err(NetError::Timeout))
}

/// Whether the name server said that there are none.
fn has_none(answer: &Answer) -> bool {
    answer.as_ref().is_ok_and(|addresses| addresses.is_empty())
}

fn has_addresses(answer: &Answer) -> bool {
    !addresses(answer).is_empty()
}

fn addresses(answer: &Answer) -> &[IpAddr] {
    answer.as_ref().map_or(&[][..], |addresses| &addresses[..])
}

/// The families in turn, the sixth first (RFC 8305, section 4).
fn interleave(v6: &[IpAddr], v4: &[IpAddr]) -> Vec<IpAddr> {
    let (mut v6, mut v4) = (v6.iter().copied(), v4.iter().copied());
    let mut all = Vec::new();
    loop {
        let before = all.len();
        all.extend(v6.next());
        all.extend(v4.next());
        if all.len() == before {
            return all;
        }
    }
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let connection = |protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = address.port();
        connection
    };
    let connections = vec![connection(ProtocolConfig::Udp), connection(ProtocolConfig::Tcp)];
    NameServerConfig::new(address.ip(), true, connections)
}

#[cfg(test)]
pub mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
    use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};
    use hickory_resolver::proto::rr::{RData, Record};
    use tokio::net::UdpSocket;

    use super::*;

    /// What a name server says of a name.
    #[derive(Clone)]
    pub enum Said {
        Addresses(Vec<IpAddr>),
        Alias(&'static str),
        Failure,
        Silence,
    }

    /// A name server on loopback, and how often it was asked for each name and type.
    pub struct NameServer {
        pub address: SocketAddr,
        pub zone: Arc<Mutex<HashMap<String, Said>>>,
        pub asked: Arc<Mutex<Vec<String>>>,
    }

    impl NameServer {
        pub async fn start() -> Self {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let server =
                Self { address: socket.local_addr().unwrap(), zone: Arc::default(), asked: Arc::default() };
            let (zone, asked) = (Arc::clone(&server.zone), Arc::clone(&server.asked));
            tokio::spawn(async move {
                let mut buffer = [0; 1500];
                loop {
                    let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
                    let question = Message::from_vec(&buffer[..length]).unwrap();
                    let answer = answer(&question, &zone.lock().unwrap(), &mut asked.lock().unwrap());
                    if let Some(answer) = answer {
                        socket.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
                    }
                }
            });
            server
        }

        pub fn say(&self, name: &str, said: Said) {
            self.zone.lock().unwrap().insert(format!("{name}."), said);
        }

        pub fn addresses(&self, name: &str, addresses: &[&str]) {
            self.say(name, Said::Addresses(addresses.iter().map(|a| a.parse().unwrap()).collect()));
        }
    }

    fn answer(question: &Message, zone: &HashMap<String, Said>, asked: &mut Vec<String>) -> Option<Message> {
        let query = question.queries.first()?.clone();
        asked.push(format!("{} {}", query.name(), query.query_type()));
        let mut answer = Message::new(question.metadata.id, MessageType::Response, question.metadata.op_code);
        answer.metadata.recursion_available = true;
        answer.metadata.recursion_desired = true;
        let mut name = query.name().clone();
        answer.add_query(query.clone());
        loop {
            match zone.get(&name.to_ascii()) {
                None => answer.metadata.response_code = ResponseCode::NXDomain,
                Some(Said::Failure) => answer.metadata.response_code = ResponseCode::ServFail,
                Some(Said::Silence) => return None,
                Some(Said::Alias(other)) => {
                    let other = Name::from_ascii(other).unwrap();
                    answer.add_answer(Record::from_rdata(name, 60, RData::CNAME(CNAME(other.clone()))));
                    name = other;
                    continue;
                }
                Some(Said::Addresses(addresses)) => {
                    for address in addresses {
                        let data = match address {
                            IpAddr::V4(v4) if query.query_type() == RecordType::A => RData::A(A(*v4)),
                            IpAddr::V6(v6) if query.query_type() == RecordType::AAAA => {
                                RData::AAAA(AAAA(*v6))
                            }
                            _ => continue,
                        };
                        answer.add_answer(Record::from_rdata(name.clone(), 60, data));
                    }
                }
            }
            return Some(answer);
        }
    }

    fn room() -> Semaphore {
        Semaphore::new(2)
    }

    fn resolver(server: &NameServer) -> Resolver {
        Resolver::new(&[server.address], Duration::from_millis(900)).unwrap()
    }

    #[tokio::test]
    async fn names_have_the_addresses_of_both_families_in_turn() {
        let server = NameServer::start().await;
        server.addresses("a.example", &["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        server.say("b.example", Said::Alias("a.example."));
        let resolver = resolver(&server);
        for name in ["a.example", "b.example", "a.example"] {
            let mut found = resolver.resolve(&name.parse().unwrap(), &room()).await.unwrap();
            assert_eq!(found.remove(0).to_string(), "2001:db8::1", "{name}");
            found.sort();
            assert_eq!(found, ["192.0.2.1".parse::<IpAddr>().unwrap(), "192.0.2.2".parse().unwrap()]);
        }
        let asked = server.asked.lock().unwrap().clone();
        assert_eq!(asked.iter().filter(|q| *q == "a.example. A").count(), 1, "{asked:?}");
    }

    /// The test's name server never says for how long a name has no address.
    #[tokio::test]
    async fn a_family_that_is_not_there_is_asked_for_once() {
        let server = NameServer::start().await;
        server.addresses("a.example", &["192.0.2.1"]);
        let resolver = resolver(&server);
        for _ in 0..3 {
            assert_eq!(resolver.resolve(&"a.example".parse().unwrap(), &room()).await.unwrap().len(), 1);
        }
        let asked = server.asked.lock().unwrap().clone();
        assert_eq!(asked.len(), 2, "{asked:?}");
    }

    #[tokio::test]
    async fn no_answer_is_no_address() {
        let server = NameServer::start().await;
        server.say("broken.example", Said::Failure);
        server.say("silent.example", Said::Silence);
        server.addresses("empty.example", &[]);
        let resolver = resolver(&server);
        for (name, nothing) in [
            ("none.example", true),
            ("empty.example", true),
            ("broken.example", false),
            ("silent.example", false),
        ] {
            let error = resolver.resolve(&name.parse().unwrap(), &room()).await.unwrap_err();
            assert_eq!(matches!(error, ResolveError::Nothing(_)), nothing, "{name}: {error}");
        }
    }

    #[tokio::test]
    async fn names_that_nobody_answers_leave_room_for_what_is_known() {
        let server = NameServer::start().await;
        server.say("silent.example", Said::Silence);
        server.addresses("a.example", &["192.0.2.1", "2001:db8::1"]);
        server.addresses("b.example", &["192.0.2.2"]);
        let (resolver, room) = (resolver(&server), room());
        let [silent, a, b] =
            ["silent", "a", "b"].map(|n| format!("{n}.example").parse::<HostName>().unwrap());
        resolver.resolve(&a, &room).await.unwrap();
        let rest = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(room.available_permits(), 0);
            // Known ones need none, and those of another sandbox have their own.
            resolver.resolve(&a, &room).await.unwrap();
            resolver.resolve(&b, &Semaphore::new(2)).await.unwrap();
            assert_eq!(room.available_permits(), 0);
        };
        let (silence, ()) = tokio::join!(resolver.resolve(&silent, &room), rest);
        silence.unwrap_err();
        assert_eq!(room.available_permits(), 2);
    }

    #[tokio::test]
    async fn no_search_domain_and_no_hosts_file() {
        let server = NameServer::start().await;
        server.addresses("localhost", &["192.0.2.1"]);
        let resolver = resolver(&server);
        // The name of the loopback is fixed in the resolver; the address policy refuses what it says.
        let found = resolver.resolve(&"localhost".parse().unwrap(), &room()).await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
        resolver.resolve(&"plain".parse().unwrap(), &room()).await.unwrap_err();
        let asked = server.asked.lock().unwrap().clone();
        assert!(asked.iter().all(|question| question.starts_with("plain. ")), "{asked:?}");
    }
}
