//! A gRPC client that sends what no proper one would: any bytes, any encoding, any claimed length.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};

pub struct Grpc {
    runtime: tokio::runtime::Runtime,
    sender: SendRequest<Full<Bytes>>,
    address: String,
}

#[derive(Debug)]
pub struct GrpcAnswer {
    /// `grpc-status`.
    pub status: u32,
    pub message: String,
    /// `grpc-status-details-bin`, in base64: where a retry hint is.
    pub details: Option<String>,
}

/// The frame around a message: flag, length, bytes.
pub fn frame(compressed: bool, message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 5);
    out.push(u8::from(compressed));
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    out
}

/// The method of a signal.
pub fn method(signal: &str) -> &'static str {
    match signal {
        "traces" => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        "logs" => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        _ => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    }
}

impl Grpc {
    pub fn connect(address: &str) -> Result<Grpc, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(|e| e.to_string())?;
        let sender = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.map_err(|e| e.to_string())?;
            let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (sender, connection) = handshake.map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            Ok::<_, String>(sender)
        })?;
        Ok(Grpc { runtime, sender, address: address.to_owned() })
    }

    /// Sends one request body as it is. `Err` when the connection broke before an answer.
    pub fn call(&mut self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Result<GrpcAnswer, String> {
        let mut request = hyper::Request::post(format!("http://{}{path}", self.address)).header("te", "trailers");
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body)).map_err(|e| e.to_string())?;
        let sender = &mut self.sender;
        self.runtime.block_on(async {
            sender.ready().await.map_err(|e| e.to_string())?;
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|e| e.to_string())?;
            let trailers = body.trailers().cloned().unwrap_or_default();
            let text = |name: &str| {
                let value = trailers.get(name).or(head.headers.get(name))?;
                Some(value.to_str().unwrap_or("?").to_owned())
            };
            let status = text("grpc-status").and_then(|s| s.parse().ok()).ok_or(format!("no grpc-status, HTTP {}", head.status))?;
            Ok(GrpcAnswer { status, message: text("grpc-message").unwrap_or_default(), details: text("grpc-status-details-bin") })
        })
    }

    pub fn export(&mut self, signal: &str, message: &[u8]) -> Result<GrpcAnswer, String> {
        self.call(method(signal), &[], frame(false, message))
    }
}
