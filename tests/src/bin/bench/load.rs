//! The generator: sends bodies that were encoded before and differ only in ids and times.

use crate::now;
use harness::Server;
use harness::corpus::Template;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    Http,
    Gzip,
    Grpc,
}

pub struct Load {
    pub templates: Arc<Vec<Template>>,
    pub signal: &'static str,
    pub way: Way,
    pub connections: usize,
    /// Items in all.
    pub items: u64,
    /// Items a second; 0 as fast as it goes.
    pub rate: u64,
    /// Event times run from here to there while the load runs; the wall clock when equal.
    pub from: u64,
    pub to: u64,
}

/// Sends the load; seconds taken and items accepted.
pub async fn send(server: &Server, load: &Load) -> (f64, u64) {
    static SALT: AtomicU64 = AtomicU64::new(1);
    let sent = Arc::new(AtomicU64::new(0));
    let accepted = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut tasks = Vec::new();
    for connection in 0..load.connections {
        let (templates, sent, accepted) = (load.templates.clone(), sent.clone(), accepted.clone());
        let address = if load.way == Way::Grpc { server.grpc.clone() } else { server.otlp.clone() };
        let (signal, way, items, rate, from, to) = (load.signal, load.way, load.items, load.rate, load.from, load.to);
        tasks.push(tokio::spawn(async move {
            let stream = tokio::net::TcpStream::connect(&address).await.expect("connect");
            let _ = stream.set_nodelay(true);
            enum Client {
                One(hyper::client::conn::http1::SendRequest<Full<bytes::Bytes>>),
                Two(hyper::client::conn::http2::SendRequest<Full<bytes::Bytes>>),
            }
            let mut client = if way == Way::Grpc {
                let (client, run) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                    .initial_stream_window_size(1 << 20)
                    .max_frame_size(1 << 20)
                    .handshake(TokioIo::new(stream))
                    .await
                    .expect("handshake");
                tokio::spawn(run);
                Client::Two(client)
            } else {
                let (client, run) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("handshake");
                tokio::spawn(run);
                Client::One(client)
            };
            let mut body = Vec::new();
            let mut at = connection;
            loop {
                let template = &templates[at % templates.len()];
                at += 1;
                let before = sent.fetch_add(template.items as u64, Ordering::Relaxed);
                if before >= items {
                    return;
                }
                if let Some(seconds) = (before as f64 / rate.max(1) as f64).into()
                    && rate > 0
                {
                    let due = start + Duration::from_secs_f64(seconds);
                    tokio::time::sleep_until(due.into()).await;
                }
                let time = if from == to {
                    now() - 2_000_000_000
                } else {
                    from + ((to - from) as u128 * u128::from(before) / u128::from(items)) as u64
                };
                template.patch(SALT.fetch_add(1, Ordering::Relaxed), time, &mut body);
                let request = hyper::Request::post(match way {
                    Way::Grpc => format!("http://{address}/opentelemetry.proto.collector.trace.v1.TraceService/Export"),
                    _ => format!("/v1/{signal}"),
                })
                .header("host", &address);
                let request = match way {
                    Way::Http => request.header("content-type", "application/x-protobuf").body(Full::from(body.clone())),
                    Way::Gzip => {
                        let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::fastest());
                        let mut out = vec![0; compressor.gzip_compress_bound(body.len())];
                        let length = compressor.gzip_compress(&body, &mut out).expect("it fits");
                        out.truncate(length);
                        request.header("content-type", "application/x-protobuf").header("content-encoding", "gzip").body(Full::from(out))
                    }
                    Way::Grpc => {
                        let mut out = Vec::with_capacity(body.len() + 5);
                        out.push(0);
                        out.extend_from_slice(&(body.len() as u32).to_be_bytes());
                        out.extend_from_slice(&body);
                        request.header("content-type", "application/grpc").header("te", "trailers").body(Full::from(out))
                    }
                }
                .expect("a valid request");
                let response = match &mut client {
                    Client::One(client) => client.send_request(request).await.expect("answered"),
                    Client::Two(client) => client.send_request(request).await.expect("answered"),
                };
                let ok = response.status() == 200;
                let _ = response.into_body().collect().await;
                if ok {
                    accepted.fetch_add(template.items as u64, Ordering::Relaxed);
                } else {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }));
    }
    for task in tasks {
        task.await.expect("a sender ends well");
    }
    (start.elapsed().as_secs_f64(), accepted.load(Ordering::Relaxed))
}
