//! The server as a `tower::Service`, for clients in the same program: no socket, no TLS, the same semantics.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kapi::ApiError;

use crate::auth::Identity;
use crate::backend::Backend;
use crate::body::{Body, failure};
use crate::limits::REQUEST_BYTES_MAX;
use crate::server::Server;

impl<B: Backend> Server<B> {
    /// Reads the body within its limit, then answers.
    pub async fn serve<R>(&self, request: Request<R>, identity: &Identity) -> Response<Body>
    where
        R: http_body::Body<Data = Bytes> + Send,
        R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        match Limited::new(body, REQUEST_BYTES_MAX).collect().await {
            Ok(body) => self.handle(Request::from_parts(parts, body.to_bytes()), identity).await,
            Err(error) if error.is::<LengthLimitError>() => failure(&ApiError::too_large(REQUEST_BYTES_MAX)),
            Err(error) => failure(&ApiError::bad_request(format!("the body could not be read: {error}"))),
        }
    }

    /// A service that acts as `identity`.
    pub fn in_process(&self, identity: Identity) -> InProcess<B> {
        InProcess { server: self.clone(), identity }
    }
}

/// A client's end of the server inside the same program.
pub struct InProcess<B> {
    server: Server<B>,
    identity: Identity,
}

impl<B> Clone for InProcess<B> {
    fn clone(&self) -> InProcess<B> {
        InProcess { server: self.server.clone(), identity: self.identity.clone() }
    }
}

impl<B, R> tower::Service<Request<R>> for InProcess<B>
where
    B: Backend,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.server.serve(request, &this.identity).await) })
    }
}
