//! What a reader is told when there is no answer: the only place of the dashboard that knows status codes. Programs get JSON, people a page.

use askama::Template;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use firstfall_store::Error;

/// A refusal of the API.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

/// A refusal of a page.
#[derive(Debug)]
pub struct PageError(ApiError);

impl ApiError {
    pub fn bad_request(message: String) -> ApiError {
        ApiError { status: StatusCode::BAD_REQUEST, code: "bad_request", message }
    }

    pub fn not_found(message: String) -> ApiError {
        ApiError { status: StatusCode::NOT_FOUND, code: "not_found", message }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        let (status, code) = match &error {
            Error::Deadline => (StatusCode::SERVICE_UNAVAILABLE, "deadline"),
            Error::TooMuch(_) => (StatusCode::UNPROCESSABLE_ENTITY, "too_much"),
            Error::Sql(_) => (StatusCode::BAD_REQUEST, "sql"),
            Error::Moved => (StatusCode::SERVICE_UNAVAILABLE, "moved"),
            _ => {
                tracing::error!(%error, "a question failed");
                (StatusCode::INTERNAL_SERVER_ERROR, "internal")
            }
        };
        ApiError { status, code, message: error.to_string() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::json!({"error": {"code": self.code, "message": self.message}}).to_string();
        (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

impl<T: Into<ApiError>> From<T> for PageError {
    fn from(error: T) -> PageError {
        PageError(error.into())
    }
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage {
    status: u16,
    message: String,
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let PageError(ApiError { status, message, .. }) = self;
        let page = ErrorPage { status: status.as_u16(), message };
        (status, Html(page.render().unwrap_or_default())).into_response()
    }
}

/// Refuses what a page of another origin makes a browser send: browsers say where a request comes from, programs do not. There is no
/// cookie to protect, but a browser sends Basic credentials along, and reaches what listens on loopback.
pub async fn same_origin(request: Request, next: axum::middleware::Next) -> Response {
    if is_foreign(request.headers()) && !request.method().is_safe() {
        let message = "this request was made by a page of another origin; send it from Firstfall's own pages, or from a program".to_owned();
        return ApiError { status: StatusCode::FORBIDDEN, code: "foreign_origin", message }.into_response();
    }
    next.run(request).await
}

fn is_foreign(headers: &axum::http::HeaderMap) -> bool {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match (header("sec-fetch-site"), header("origin")) {
        (Some(site), _) => !matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => origin.split_once("://").map(|(_, host)| host) != header("host"),
        (None, None) => false,
    }
}

pub async fn not_found(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(200).collect();
    let error = ApiError::not_found(format!("there is nothing at {path}"));
    if path.starts_with("/api/") || path.starts_with("/v1/") { error.into_response() } else { PageError(error).into_response() }
}
