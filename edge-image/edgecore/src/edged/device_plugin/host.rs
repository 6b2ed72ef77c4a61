//! Plugins that registered: their sockets, what they list, and the calls that are made to them.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::uri::PathAndQuery;
use tokio::{net::UnixListener, sync::mpsc};
use tonic::{client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use super::{
    book::{Claim, News},
    messages as api, register,
};
use crate::{
    contract::BoxFuture,
    edged::{cri::channel, limits},
};

const SOCKET: &str = "kubelet.sock";

#[derive(Clone)]
struct Plugin {
    channel: Channel,
    options: api::Options,
    generation: u64,
}

#[derive(Default)]
struct State {
    plugins: BTreeMap<String, Plugin>,
    registrations: u64,
}

/// All plugins of the node.
pub struct Plugins {
    dir: PathBuf,
    state: Mutex<State>,
}

impl Plugins {
    /// `kubelet_dir`: `/var/lib/kubelet`.
    pub fn new(kubelet_dir: &Path) -> Plugins {
        Plugins { dir: kubelet_dir.join("device-plugins"), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plugin(&self, resource: &str) -> Result<Plugin, String> {
        let plugin = self.state().plugins.get(resource).cloned();
        plugin.ok_or_else(|| format!("cannot allocate unregistered device {resource}"))
    }

    /// Takes registrations and follows the plugins' lists, until it is dropped. Ends only when the socket cannot be made.
    pub async fn serve(self: Arc<Self>, news: mpsc::Sender<News>) -> io::Result<()> {
        let listener = self.listen()?;
        let (registered, mut registrations) =
            mpsc::channel::<(String, Plugin)>(limits::DEVICE_NEWS_WAITING_MAX);
        let this = self.clone();
        let register = Arc::new(move |request: api::RegisterRequest| {
            let (this, registered) = (this.clone(), registered.clone());
            async move {
                let (resource, plugin) = this.register(&request)?;
                tracing::info!("device plugin {resource} registered at {}", request.endpoint);
                // The loop ends with us.
                let _ = registered.send((resource, plugin)).await;
                Ok(())
            }
        });
        let mut connections = FuturesUnordered::new();
        let mut streams: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < limits::DEVICE_CONNECTIONS_MAX => {
                    if let Ok((stream, _)) = accepted {
                        connections.push(register::serve(stream, register.clone()));
                    }
                }
                Some((resource, plugin)) = registrations.recv() => {
                    streams.push(Box::pin(self.clone().follow(resource, plugin, news.clone())));
                }
                Some(()) = connections.next(), if !connections.is_empty() => {}
                Some(()) = streams.next(), if !streams.is_empty() => {}
            }
        }
    }

    /// Makes the socket anew. Plugins watch for that, and for the end of their own sockets, and register again.
    fn listen(&self) -> io::Result<UnixListener> {
        fs::create_dir_all(&self.dir)?;
        for entry in fs::read_dir(&self.dir)?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        UnixListener::bind(self.dir.join(SOCKET))
    }

    fn register(&self, request: &api::RegisterRequest) -> Result<(String, Plugin), register::Refusal> {
        let resource = request.resource_name.clone();
        let mut state = self.state();
        if state.plugins.len() >= limits::DEVICE_RESOURCES_MAX && !state.plugins.contains_key(&resource) {
            let message = format!("{} device plugins are registered, this node's limit", state.plugins.len());
            return Err(register::Refusal { code: 8, message });
        }
        state.registrations += 1;
        let path = self.dir.join(&request.endpoint);
        let plugin = Plugin {
            channel: channel(&path.display().to_string()),
            options: request.options.unwrap_or_default(),
            generation: state.registrations,
        };
        state.plugins.insert(resource.clone(), plugin.clone());
        Ok((resource, plugin))
    }

    /// Hears what a plugin lists until it ends or another one takes its place.
    async fn follow(self: Arc<Self>, resource: String, plugin: Plugin, news: mpsc::Sender<News>) {
        let generation = plugin.generation;
        let tell = async |what| drop(news.send(what).await);
        tell(News::Registered { resource: resource.clone(), generation }).await;
        let lists = async {
            // A plugin that says nothing of its options at registration is asked, as kubelet does.
            if let Ok(options) = call(&plugin.channel, "GetDevicePluginOptions", api::Empty {}).await {
                let mut state = self.state();
                if let Some(known) = state.plugins.get_mut(&resource).filter(|p| p.generation == generation) {
                    known.options = options;
                }
            }
            let mut grpc = client(&plugin.channel);
            grpc.ready().await.map_err(|error| error.to_string())?;
            let codec: ProstCodec<api::Empty, api::ListAndWatchResponse> = ProstCodec::default();
            let path = PathAndQuery::from_static("/v1beta1.DevicePlugin/ListAndWatch");
            let stream = grpc.server_streaming(tonic::Request::new(api::Empty {}), path, codec).await;
            let mut stream = stream.map_err(|status| status.message().to_string())?.into_inner();
            while let Some(list) = stream.message().await.map_err(|status| status.message().to_string())? {
                if list.devices.len() > limits::DEVICES_PER_RESOURCE_MAX {
                    return Err(format!(
                        "it lists {} devices, more than {}",
                        list.devices.len(),
                        limits::DEVICES_PER_RESOURCE_MAX
                    ));
                }
                let devices = list.devices.into_iter().map(|d| (d.id, d.health == api::HEALTHY)).collect();
                let (resource, generation) = (resource.clone(), generation);
                tell(News::Listed { resource, generation, devices }).await;
            }
            Ok::<(), String>(())
        };
        match lists.await {
            Ok(()) => tracing::warn!("device plugin {resource} ended"),
            Err(error) => tracing::warn!("device plugin {resource} ended: {error}"),
        }
        {
            let mut state = self.state();
            if state.plugins.get(&resource).is_some_and(|plugin| plugin.generation == generation) {
                state.plugins.remove(&resource);
            }
        }
        tell(News::Lost { resource, generation }).await;
    }

    /// Which devices the plugins would rather give: by the claim's place in the list. `free`: what else there is for each claim.
    pub async fn prefer(&self, claims: &[Claim], free: &[Vec<String>]) -> Vec<(usize, Vec<String>)> {
        let mut preferred = Vec::new();
        for (at, (claim, free)) in claims.iter().zip(free).enumerate() {
            let Ok(plugin) = self.plugin(&claim.resource) else { continue };
            if !plugin.options.get_preferred_allocation_available {
                continue;
            }
            let container = api::ContainerPreferredRequest {
                available: claim.ids.iter().chain(free).cloned().collect(),
                must_include: Vec::new(),
                size: i32::try_from(claim.ids.len()).unwrap_or(i32::MAX),
            };
            let request = api::PreferredRequest { containers: vec![container] };
            // A preference that cannot be had is none.
            let answer: Result<api::PreferredResponse, _> =
                call(&plugin.channel, "GetPreferredAllocation", request).await;
            if let Some(ids) = answer.ok().and_then(|answer| answer.containers.into_iter().next()) {
                preferred.push((at, ids.ids));
            }
        }
        preferred
    }

    /// Asks the plugins for what containers need to use these devices.
    pub async fn allocate(&self, claims: &[Claim]) -> Result<Vec<api::ContainerAllocateResponse>, String> {
        let mut answers = Vec::with_capacity(claims.len());
        for claim in claims {
            let plugin = self.plugin(&claim.resource)?;
            let request =
                api::AllocateRequest { containers: vec![api::DeviceIds { ids: claim.ids.clone() }] };
            let answer: api::AllocateResponse = call(&plugin.channel, "Allocate", request).await?;
            let answer = answer.containers.into_iter().next();
            answers.push(answer.ok_or_else(|| {
                format!("no containers in the response of device plugin {}", claim.resource)
            })?);
        }
        Ok(answers)
    }

    /// Before each start of a container, for plugins that want it.
    pub async fn pre_start(&self, resource: &str, ids: &[String]) -> Result<(), String> {
        // A plugin that is away cannot want it; its devices were given before.
        let Ok(plugin) = self.plugin(resource) else { return Ok(()) };
        if !plugin.options.pre_start_required {
            return Ok(());
        }
        let request = api::DeviceIds { ids: ids.to_vec() };
        let answer: Result<api::Empty, String> = call(&plugin.channel, "PreStartContainer", request).await;
        answer
            .map(drop)
            .map_err(|error| format!("device plugin {resource} failed PreStartContainer: {error}"))
    }
}

fn client(channel: &Channel) -> Grpc<Channel> {
    Grpc::new(channel.clone()).max_decoding_message_size(limits::DEVICE_LIST_BYTES_MAX)
}

async fn call<Q, A>(channel: &Channel, method: &'static str, request: Q) -> Result<A, String>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let work = async {
        let mut grpc = client(channel);
        grpc.ready().await.map_err(|error| error.to_string())?;
        let codec: ProstCodec<Q, A> = ProstCodec::default();
        let path = format!("/v1beta1.DevicePlugin/{method}");
        let path = PathAndQuery::try_from(path).expect("a method's name is a path");
        let answer = grpc.unary(tonic::Request::new(request), path, codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| format!("rpc error: {}", status.message()))
    };
    let deadline: Duration = limits::DEVICE_CALL;
    match tokio::time::timeout(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(format!("{method} was not answered within {} s", deadline.as_secs())),
    }
}
