//! One connection: HTTP/1.1 with upgrades over any byte stream.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use http::{Method, Request, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rt::{BoxFuture, BoxIo};

use crate::contract::HistoryQuery;

use super::{
    Access, Node,
    body::{Answer, answer, text},
    limits, logs, metrics, pods,
    route::{Query, Route},
    streaming, summary,
};

/// What goes on with the bytes of a connection after its upgrade. Run by [`serve`] itself, so nothing is spawned: whoever drops
/// the connection drops all of it.
pub type Afterwards = Arc<Mutex<Option<BoxFuture<'static, ()>>>>;

pub async fn serve(node: Arc<Node>, io: BoxIo, access: Access) {
    let afterwards = Afterwards::default();
    let service = service_fn(|request| {
        let (node, afterwards) = (node.clone(), afterwards.clone());
        async move { Ok::<_, Infallible>(handle(node, request, access, afterwards).await) }
    });
    let connection = builder().serve_connection(TokioIo::new(io), service).with_upgrades();
    // Peers leave when they have what they want; that is nobody's fault.
    if let Err(error) = connection.await {
        tracing::debug!("a connection to the kubelet API ended: {error}");
    }
    let next = afterwards.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(next) = next {
        next.await;
    }
}

/// Memory per connection is bounded here, in both directions.
pub fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIMEOUT)
        .max_buf_size(limits::HTTP_BUFFER_BYTES_MAX);
    builder
}

fn device_history(node: &Node, id: &str, query: &Query) -> Answer {
    let Some(read) = node.handles.history.borrow().clone() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "modules.deviceTwin is off, or still starting\n");
    };
    let number = |key: &str| query.get(key).and_then(|text| text.parse().ok());
    let asked = HistoryQuery {
        event_id: String::new(),
        property: query.get("property").unwrap_or_default().into(),
        since: number("since"),
        until: number("until"),
        limit: query.get("limit").and_then(|text| text.parse().ok()),
    };
    answer(StatusCode::OK, "application/json", read(id, &asked).into())
}

async fn handle(
    node: Arc<Node>,
    request: Request<Incoming>,
    access: Access,
    afterwards: Afterwards,
) -> Answer {
    let Some(route) = Route::parse(request.uri().path()) else {
        return text(StatusCode::NOT_FOUND, "404 page not found\n");
    };
    if access == Access::ReadOnly && !route.is_public() {
        return text(StatusCode::NOT_FOUND, "404 page not found\n");
    }
    let upgrades = matches!(route, Route::Exec(_) | Route::Attach(_) | Route::PortForward(_));
    if request.method() != Method::GET && !(upgrades && request.method() == Method::POST) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed\n");
    }
    let query = Query::parse(request.uri().query().unwrap_or_default());
    match route {
        Route::Logs(target) => logs::answer(node, &target, &query).await,
        Route::Exec(target) => streaming::exec(node, request, target, &query, afterwards).await,
        Route::Attach(target) => streaming::attach(node, request, target, &query, afterwards).await,
        Route::PortForward(target) => {
            streaming::port_forward(node, request, target, &query, afterwards).await
        }
        Route::Pods => pods::pods(&node),
        Route::RunningPods => pods::running(node).await,
        Route::Configz => pods::configz(&node),
        Route::Metrics => metrics::own(node).await,
        Route::MetricsResource => metrics::resource(node).await,
        Route::MetricsCadvisor => metrics::cadvisor(node).await,
        Route::MetricsProbes => metrics::probes(),
        Route::Summary => summary::summary(node).await,
        Route::DeviceHistory(id) => device_history(&node, &id, &query),
        Route::Health => text(StatusCode::OK, "ok"),
    }
}
