//! An endpoint that everyone but a sandbox can reach. A sandbox's start gate tries it: a connection proves that nobody
//! enforces the sandbox's policy. Every replica listens, whether or not it leads.
use std::time::Duration;

use tokio::net::TcpListener;

/// Pause after an error, which may be one that stays for a while, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections on `listener` and closes them at once, until the process ends.
pub async fn serve(listener: TcpListener) {
    loop {
        if let Err(error) = listener.accept().await {
            tracing::warn!(%error, "the canary could not accept a connection");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn it_accepts_and_closes_again_and_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener));
        for _ in 0..3 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 8])).await.unwrap();
            assert_eq!(read.unwrap(), 0);
        }
    }
}
