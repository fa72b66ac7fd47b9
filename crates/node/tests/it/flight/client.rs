//! A Flight client over one HTTP/2 connection that tests can break.

use std::pin::Pin;
use std::task::{Context, Poll};

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::{
    ActionBeginTransactionRequest, ActionBeginTransactionResult, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedStatementResult, ActionEndTransactionRequest, Any, CommandStatementQuery,
    CommandStatementUpdate, DoPutUpdateResult, EndTransaction, ProstMessageExt,
};
use arrow_flight::{Action, FlightData, FlightDescriptor, FlightInfo, PutResult, Ticket};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::codegen::Service;
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::{Request, Status};

use crate::server::TOKEN;

/// The stock client on a connection of ours.
pub type Stub = FlightServiceClient<Connection>;

/// One HTTP/2 connection.
#[derive(Clone)]
pub struct Connection {
    sender: SendRequest<tonic::body::Body>,
    address: String,
}

impl Service<http::Request<tonic::body::Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<tonic::body::Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        *request.uri_mut() = format!("http://{}{path}", self.address).parse().expect("an address and a path");
        Box::pin(self.sender.send_request(request))
    }
}

/// A client that is one principal.
pub struct Client {
    connection: Connection,
    driver: Option<JoinHandle<()>>,
    metadata: Vec<(String, String)>,
}

impl Client {
    /// With the admin token.
    pub async fn connect(address: &str) -> Self {
        Self::connect_as(address, TOKEN).await
    }

    /// With some token.
    pub async fn connect_as(address: &str, token: &str) -> Self {
        Self::over(TcpStream::connect(address).await.expect("the node listens"), address, token).await
    }

    /// On a connection that is there.
    pub async fn over<S>(stream: S, address: &str, token: &str) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("it speaks HTTP/2");
        let driver = tokio::spawn(async move {
            // Tests break it on purpose.
            let _ = connection.await;
        });
        let metadata = vec![("authorization".to_owned(), format!("Bearer {token}"))];
        Self { connection: Connection { sender, address: address.to_owned() }, driver: Some(driver), metadata }
    }

    /// With one more line of metadata.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.metadata.retain(|(known, _)| known != name);
        self.metadata.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same connection with one more line of metadata.
    pub fn also_with(&self, name: &str, value: &str) -> Self {
        Self { connection: self.connection.clone(), driver: None, metadata: self.metadata.clone() }.with(name, value)
    }

    /// Breaks the connection off.
    pub fn cut(self) {
        if let Some(driver) = self.driver {
            driver.abort();
        }
    }

    pub fn stub(&self) -> Stub {
        FlightServiceClient::with_origin(self.connection.clone(), http::Uri::from_static("http://node"))
    }

    /// A request with this client's metadata.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (name, value) in &self.metadata {
            let name: AsciiMetadataKey = name.parse().expect("a legal name");
            request.metadata_mut().insert(name, value.parse().expect("a legal value"));
        }
        request
    }

    pub async fn info(&self, command: impl ProstMessageExt) -> Result<FlightInfo, Status> {
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        Ok(self.stub().get_flight_info(self.request(descriptor)).await?.into_inner())
    }

    /// The info of a statement.
    pub async fn execute(&self, sql: &str) -> Result<FlightInfo, Status> {
        self.info(CommandStatementQuery { query: sql.to_owned(), transaction_id: None }).await
    }

    /// The messages behind a ticket.
    pub async fn get(&self, ticket: Ticket) -> Result<Vec<FlightData>, Status> {
        self.stub().do_get(self.request(ticket)).await?.into_inner().try_collect().await
    }

    /// The number of rows behind an info.
    pub async fn count(&self, info: &FlightInfo) -> Result<usize, Status> {
        let data = self.get(ticket_of(info)).await?;
        let length = |data: &FlightData| {
            let message = arrow_ipc::root_as_message(&data.data_header).expect("it is Arrow's");
            message.header_as_record_batch().map_or(0, |batch| batch.length())
        };
        Ok(data.iter().map(length).sum::<i64>() as usize)
    }

    pub async fn update(&self, sql: &str) -> Result<i64, Status> {
        let command = CommandStatementUpdate { query: sql.to_owned(), transaction_id: None };
        self.update_by(command).await
    }

    pub async fn update_by(&self, command: CommandStatementUpdate) -> Result<i64, Status> {
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let data = FlightData { flight_descriptor: Some(descriptor), ..Default::default() };
        self.put(futures::stream::iter([data])).await
    }

    /// Uploads messages; how many rows it took.
    pub async fn put(&self, messages: impl Stream<Item = FlightData> + Send + 'static) -> Result<i64, Status> {
        let mut answers = self.stub().do_put(self.request(messages)).await?.into_inner();
        let PutResult { app_metadata } = answers.next().await.expect("there is a result")?;
        Ok(DoPutUpdateResult::decode(&*app_metadata).expect("it is one").record_count)
    }

    /// An action's answers.
    pub async fn act(&self, name: &str, body: Vec<u8>) -> Result<Vec<Bytes>, Status> {
        let action = Action { r#type: name.to_owned(), body: body.into() };
        let answers = self.stub().do_action(self.request(action)).await?.into_inner();
        answers.map_ok(|answer| answer.body).try_collect().await
    }

    pub async fn prepare(
        &self,
        sql: &str,
        transaction: Option<Bytes>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let request = ActionCreatePreparedStatementRequest { query: sql.to_owned(), transaction_id: transaction };
        let answer = self.act("CreatePreparedStatement", request.as_any().encode_to_vec()).await?;
        Ok(unpacked(&answer[0]))
    }

    pub async fn begin(&self) -> Result<Bytes, Status> {
        let answer = self.act("BeginTransaction", ActionBeginTransactionRequest {}.as_any().encode_to_vec()).await?;
        Ok(unpacked::<ActionBeginTransactionResult>(&answer[0]).transaction_id)
    }

    pub async fn end(&self, transaction_id: Bytes, action: EndTransaction) -> Result<(), Status> {
        let request = ActionEndTransactionRequest { transaction_id, action: action.into() };
        self.act("EndTransaction", request.as_any().encode_to_vec()).await.map(|_| ())
    }

    /// Sends bytes as they are to one of the service's calls; the status that the answer ends with.
    pub async fn raw(&self, call: &str, body: Vec<u8>) -> Option<i32> {
        let mut request = http::Request::new(tonic::body::Body::new(
            http_body_util::Full::new(Bytes::from(body)).map_err(|never| match never {}),
        ));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() =
            format!("http://node/arrow.flight.protocol.FlightService/{call}").parse().expect("a legal path");
        request.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert("te", http::HeaderValue::from_static("trailers"));
        let mut metadata = MetadataMap::new();
        for (name, value) in &self.metadata {
            let name: AsciiMetadataKey = name.parse().expect("a legal name");
            metadata.insert(name, value.parse().expect("a legal value"));
        }
        request.headers_mut().extend(metadata.into_headers());
        let mut connection = self.connection.clone();
        let response = connection.call(request).await.ok()?;
        let status = |headers: &http::HeaderMap| headers.get("grpc-status")?.to_str().ok()?.parse().ok();
        let early = status(response.headers());
        let end = response.into_body().collect().await.ok()?;
        early.or_else(|| status(end.trailers()?))
    }
}

pub fn ticket_of(info: &FlightInfo) -> Ticket {
    info.endpoint[0].ticket.clone().expect("an endpoint has a ticket")
}

fn unpacked<M: ProstMessageExt>(bytes: &[u8]) -> M {
    Any::decode(bytes).expect("it is packed").unpack().expect("it is read").expect("it is what it should be")
}
