//! Sockets: accepts connections within limits, speaks HTTP/1.1 and HTTP/2, and ends them in good order.

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Connections of one listener at a time; further ones wait in the kernel's queue. SDKs keep one each.
const CONNECTIONS_MAX: usize = 2048;
/// A client that has not sent its headers by then is cut off.
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// Wide enough that a client never waits for a window update within a batch (the default of 64 kB costs a round trip each).
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const STREAMS_MAX: u32 = 256;
/// What is in flight when the server stops has this long to be answered.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// Serves until `stop` turns true and what was in flight is answered.
pub async fn serve(listener: TcpListener, router: Router, mut stop: watch::Receiver<bool>) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIME_MAX).max_buf_size(512 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(1 << 20)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(64 << 10)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(20));
    let builder = Arc::new(builder);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let socket = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    // Out of descriptors, most likely: it passes when some are closed.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = told(&mut stop) => break,
        };
        // Nagle's algorithm and delayed acknowledgement together make each small answer wait 40 ms.
        let _ = socket.set_nodelay(true);
        let connection = builder.serve_connection(TokioIo::new(socket), TowerToHyperService::new(router.clone())).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIME_MAX, graceful.shutdown()).await.is_err() {
        tracing::warn!("some connections did not end in time and are cut off");
    }
}

/// Returns once the server is told to stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    // The sender is gone: nobody can say it any more, so it is over too.
    let _ = stop.wait_for(|stop| *stop).await;
}
