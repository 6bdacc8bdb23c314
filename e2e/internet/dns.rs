//! The name server of the test zone `asbx.test`, with the names that a gateway must not be fooled by.
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// Longest question, in bytes.
const QUESTION: usize = 4096;

/// What the zone says. `rebind` answers a public address first and a private one after it, with a TTL of 0.
#[derive(Debug, Default)]
pub struct Zone {
    asked: AtomicUsize,
}

impl Zone {
    fn addresses(&self, name: &str) -> Option<(u32, Vec<IpAddr>)> {
        let v4 = |a, b, c, d| IpAddr::V4(Ipv4Addr::new(a, b, c, d));
        let (first, second, third) = (v4(203, 0, 113, 10), v4(203, 0, 113, 11), v4(203, 0, 113, 12));
        let private = v4(10, 96, 0, 1);
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let label = name.strip_suffix(".asbx.test")?;
        let found = match label {
            // Three names of one address, as on a content delivery network.
            "one" | "two" | "api" | "forged" => vec![first],
            "other" => vec![second],
            "private" => vec![private],
            "metadata" => vec![v4(169, 254, 169, 254)],
            "loopback" => vec![v4(127, 0, 0, 1)],
            "zero" => vec![v4(0, 0, 0, 0)],
            "mixed" => vec![private, first],
            "mapped" => vec![IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x0a60, 1))],
            "nat64" => vec![IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0x0a60, 1))],
            "rebind" => {
                let public = self.asked.fetch_add(1, Ordering::Relaxed) == 0;
                return Some((0, vec![if public { first } else { private }]));
            }
            label if label.split_once('.').is_some_and(|(_, parent)| parent == "wild") => vec![third],
            _ => return None,
        };
        Some((60, found))
    }

    /// The answer to `question`, or none where it is no question or nobody is to answer.
    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let asked = Message::from_vec(question).ok()?;
        let query = asked.queries.first()?.clone();
        let name: Name = query.name().clone();
        let text = name.to_ascii();
        if text.to_ascii_lowercase().starts_with("silent.") {
            return None;
        }
        let mut reply = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
        reply.metadata.recursion_desired = asked.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.authoritative = true;
        let label = text.split('.').next().unwrap_or_default().to_ascii_lowercase();
        // Somebody who did not see the question guesses its number.
        if label == "forged" {
            reply.metadata.id = asked.metadata.id.wrapping_add(1);
        }
        match self.addresses(&text) {
            _ if label == "broken" => reply.metadata.response_code = ResponseCode::ServFail,
            None => reply.metadata.response_code = ResponseCode::NXDomain,
            Some((ttl, addresses)) => {
                let data = addresses.into_iter().filter_map(|address| match (address, query.query_type()) {
                    (IpAddr::V4(a), RecordType::A) => Some(RData::A(A(a))),
                    (IpAddr::V6(a), RecordType::AAAA) => Some(RData::AAAA(AAAA(a))),
                    _ => None,
                });
                for data in data {
                    reply.add_answer(Record::from_rdata(name.clone(), ttl, data));
                }
            }
        }
        reply.add_query(query);
        reply.to_vec().ok()
    }
}

/// Answers on a socket, for ever.
pub async fn datagrams(socket: UdpSocket, zone: Arc<Zone>) {
    let mut buffer = vec![0; QUESTION];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                let question = buffer.get(..length).unwrap_or_default();
                if let Some(answer) = zone.answer(question) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Answers the questions of one connection.
pub async fn stream(mut stream: TcpStream, zone: Arc<Zone>) -> std::io::Result<()> {
    loop {
        let length = timeout(Duration::from_secs(10), stream.read_u16()).await??;
        let mut question = vec![0; usize::from(length).min(QUESTION)];
        timeout(Duration::from_secs(10), stream.read_exact(&mut question)).await??;
        let Some(answer) = zone.answer(&question) else { return Ok(()) };
        stream.write_u16(u16::try_from(answer.len()).unwrap_or_default()).await?;
        stream.write_all(&answer).await?;
    }
}

/// Where the name server listens on `address`.
pub fn endpoint(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 53)
}
