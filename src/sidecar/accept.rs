//! Takes the agent's connections to a proxy, each in a task of its own.
use std::io;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::kernel_buffers::{are_many, narrow};
use super::pause;
use super::tunnel::Agent;

/// Connections to one proxy at once; one more is reset.
const MAX_CONNECTIONS: usize = 256;

/// Serves connections for ever, each by `converse`.
pub async fn serve<F, Fut>(listener: TcpListener, converse: F)
where
    F: Fn(Agent) -> Fut,
    Fut: Future<Output = io::Result<()>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            pause().await;
            continue;
        };
        if are_many(&room, MAX_CONNECTIONS) {
            narrow(&stream);
        }
        let agent = Agent::new(stream);
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            agent.reset();
            continue;
        };
        let conversation = converse(agent);
        tokio::spawn(async move {
            // Whoever breaks off is not told so.
            let _ = conversation.await;
            drop(place);
        });
    }
}
