//! The Pod's name server. It knows the names that may be reached and nothing else, and asks nobody.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::kernel_buffers::narrow;
use super::listeners::listen;
use super::pause;
use crate::egress::buffered::Buffered;
use crate::policy::HostName;

/// What a name that may not be reached is answered with. It stays open whether the name exists: nobody has looked.
const REFUSAL: ResponseCode = ResponseCode::Refused;

/// Seconds that an answer holds. Short, so that a changed policy is seen soon; the address itself stays.
const TTL: u32 = 5;

/// Longest query.
const MAX_QUERY: usize = 4096;

/// Payload that is offered by EDNS (RFC 6891): what fits everywhere without fragments.
const PAYLOAD: u16 = 1232;

/// Length of a header.
const HEADER: usize = 12;

/// Connections at once.
const MAX_CONNECTIONS: usize = 32;

/// Queries on one connection; whoever has more opens another one. RFC 7766, 6.2.3, lets a server close as it likes.
const MAX_QUERIES: usize = 100;

/// Longest wait for a query on a connection, and for the peer to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the name server asks.
pub trait Directory {
    /// Whether `name` may be reached at some port; else why not, in a word.
    fn allows(&self, name: &HostName) -> Result<(), String>;
    /// The address of `name`, which may be reached, with listeners behind it.
    fn address(&self, name: &HostName) -> Result<Ipv4Addr, String>;
    /// The name that has this address.
    fn name(&self, address: Ipv4Addr) -> Option<HostName>;
    /// A query was refused.
    fn refused(&self, name: &str, kind: &str, reason: &str);
}

/// Answers by UDP.
pub async fn serve_udp(socket: UdpSocket, directory: Arc<dyn Directory + Send + Sync>) {
    let mut packet = [0; MAX_QUERY];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut packet).await else {
            pause().await;
            continue;
        };
        let reply = packet.get(..length).and_then(|query| answer(query, directory.as_ref()));
        if let Some(reply) = reply {
            // A peer that is gone, or reads too slowly, asks again.
            let _ = timeout(PATIENCE, socket.send_to(&reply, peer)).await;
        }
    }
}

/// Answers by TCP.
pub async fn serve_tcp(listener: TcpListener, directory: Arc<dyn Directory + Send + Sync>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            pause().await;
            continue;
        };
        // Without room the connection is closed: the peer may come again.
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
        narrow(&stream);
        let directory = Arc::clone(&directory);
        tokio::spawn(async move {
            converse(stream, directory.as_ref()).await;
            drop(place);
        });
    }
}

async fn converse(mut stream: TcpStream, directory: &(dyn Directory + Send + Sync)) {
    let (reader, mut writer) = stream.split();
    let mut reader = Buffered::new(reader);
    for _ in 0..MAX_QUERIES {
        let Ok(Ok(query)) = timeout(PATIENCE, read_query(&mut reader)).await else { return };
        let Some(reply) = answer(&query, directory) else { return };
        let Ok(length) = u16::try_from(reply.len()) else { return };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        if !matches!(timeout(PATIENCE, writer.write_all(&framed)).await, Ok(Ok(()))) {
            return;
        }
    }
}

async fn read_query<R: tokio::io::AsyncRead + Unpin>(reader: &mut Buffered<R>) -> std::io::Result<Vec<u8>> {
    let length = match reader.exactly(2).await?.as_slice() {
        [high, low] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    if !(HEADER..=MAX_QUERY).contains(&length) {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    reader.exactly(length).await
}

/// The answer to `packet`; none to what is no query.
pub fn answer(packet: &[u8], directory: &(dyn Directory + Send + Sync)) -> Option<Vec<u8>> {
    if !is_plain_query(packet) {
        return None;
    }
    let query = Message::from_vec(packet).ok()?;
    let [question] = query.queries.as_slice() else { return None };
    let mut reply = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&query.metadata);
    reply.metadata.authoritative = true;
    // What stubs look for. There is no recursion that could be missed.
    reply.metadata.recursion_available = true;
    reply.add_query(question.clone());
    if let Some(edns) = &query.edns {
        let mut own = Edns::new();
        own.set_max_payload(PAYLOAD);
        if edns.version() > 0 {
            reply.metadata.response_code = ResponseCode::BADVERS;
        }
        reply.set_edns(own);
    }
    if reply.metadata.response_code == ResponseCode::NoError {
        if query.metadata.op_code == OpCode::Query {
            decide(question, &mut reply, directory);
        } else {
            reply.metadata.response_code = ResponseCode::NotImp;
        }
    }
    reply.to_vec().ok()
}

/// Whether `packet` has the header of a query with one question and little else: it bounds what is parsed.
fn is_plain_query(packet: &[u8]) -> bool {
    let [_, _, flags, _, q0, q1, an0, an1, ns0, ns1, 0, additional, ..] = packet else { return false };
    let is_query = flags & 0x80 == 0;
    is_query && [q0, q1] == [&0, &1] && [an0, an1, ns0, ns1] == [&0; 4] && *additional <= 2
}

fn decide(question: &Query, reply: &mut Message, directory: &(dyn Directory + Send + Sync)) {
    let kind = question.query_type();
    let mut refuse = |name: &str, reason: &str| {
        directory.refused(name, &kind.to_string(), reason);
        reply.metadata.response_code = REFUSAL;
        // To refuse is not to speak for the zone.
        reply.metadata.authoritative = false;
    };
    let asked = question.name().to_ascii();
    if question.query_class() != DNSClass::IN {
        return refuse(&asked, "ClassNotAllowed");
    }
    if kind == RecordType::PTR
        && let Some(name) = reverse(question.name()).and_then(|address| directory.name(address))
        && let Ok(name) = Name::from_str(&format!("{name}."))
    {
        reply.add_answer(Record::from_rdata(question.name().clone(), TTL, RData::PTR(PTR(name))));
        return;
    }
    let Ok(name) = HostName::parse(&asked) else { return refuse(&asked, "InvalidName") };
    if let Err(reason) = directory.allows(&name) {
        return refuse(name.as_str(), &reason);
    }
    if matches!(kind, RecordType::A | RecordType::ANY) {
        match directory.address(&name) {
            Ok(address) => {
                reply.add_answer(Record::from_rdata(question.name().clone(), TTL, RData::A(A(address))));
            }
            Err(reason) => {
                directory.refused(name.as_str(), &kind.to_string(), &reason);
                // For now: another time it may work.
                reply.metadata.response_code = ResponseCode::ServFail;
            }
        }
    } else {
        // The name is there and has no such record: no AAAA, so that nobody waits for IPv6, and no HTTPS or SVCB, which
        // would lead to keys for an encrypted ClientHello and to HTTP/3.
        reply.add_authority(start_of_authority(question.name()));
    }
}

/// Lets resolvers remember that there is no such record (RFC 2308).
fn start_of_authority(zone: &Name) -> Record {
    let seconds = 5;
    let soa = SOA::new(zone.clone(), zone.clone(), 1, seconds, seconds, seconds, TTL);
    Record::from_rdata(zone.clone(), TTL, RData::SOA(soa))
}

/// The address that a name of `in-addr.arpa` is about.
fn reverse(name: &Name) -> Option<Ipv4Addr> {
    let network = name.parse_arpa_name().ok()?;
    match network.addr() {
        IpAddr::V4(address) if network.prefix_len() == 32 => Some(address),
        _ => None,
    }
}

/// Sockets of the name server at `address`.
pub async fn bind(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    Ok((UdpSocket::bind(address).await?, listen(address)?))
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
