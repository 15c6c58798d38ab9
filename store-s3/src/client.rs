//! The requests, one function each; what a server may answer against the rules is dealt with here.

use std::{
    convert::Infallible,
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use aws_config::{BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::{
    config::{
        Credentials, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
        http::HttpResponse,
    },
    error::{ProvideErrorMetadata, SdkError},
    presigning::PresigningConfig,
    primitives::ByteStream,
    types::{
        BucketLocationConstraint, ChecksumAlgorithm, ChecksumMode, CompletedMultipartUpload, CompletedPart,
        CreateBucketConfiguration, ServerSideEncryption, StorageClass,
    },
};
use aws_smithy_http_client::{
    Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::BeforeTransmitInterceptorContextMut, dyn_dispatch_hint},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{base64, config_bag::ConfigBag};
use bytes::{Buf, Bytes};
use crc_fast::CrcAlgorithm;
use http_body::{Body, Frame, SizeHint};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use store_core::{
    Algorithm, Error, ErrorKind, Hasher, Result, Secret,
    driver::{Gathered, GoingOn, Payload, again},
    file::blocking,
};

use crate::{
    S3Config,
    config::{Checksum, Conditional, PathStyle, Sse},
    error::{NO_S3, from_sdk, late},
    location::Theirs,
};

/// The user metadata that ties an object to its sidecar.
const TOKEN: &str = "imagestore-token";

/// For a request that moves no image data.
const CALL: Duration = Duration::from_secs(60);

/// For a part or a piece, on a line of 100 kB/s and more.
fn transfer(len: u64) -> Duration {
    CALL + Duration::from_secs(len / 100_000)
}

/// How long a server may take nothing of a body, or say nothing when it has all. Then the connection counts as dead, while
/// there is time for another one before a store's deadline for a chunk: a minute, unless `timeout.chunk` is set.
const STALLED: Duration = Duration::from_secs(30);

/// Waits for the server no longer than is `left` of its time.
async fn within<T>(what: &str, left: &mut Duration, call: impl Future<Output = T>) -> Result<T> {
    let start = Instant::now();
    let outcome = tokio::time::timeout(*left, call).await.map_err(|_| late(what))?;
    *left = left.saturating_sub(start.elapsed());
    Ok(outcome)
}

/// For the commit of many parts, which Amazon takes minutes for.
const COMMIT: Duration = Duration::from_secs(900);

/// For the copy of a part within the server, which answers when it is done.
const COPY: Duration = Duration::from_secs(900);

/// One bucket of one server.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    s3: aws_sdk_s3::Client,
    bucket: String,
    checksum: Checksum,
    storage_class: Option<StorageClass>,
    tags: Option<String>,
    sse: Option<ServerSideEncryption>,
    sse_kms_key: Option<String>,
    sse_customer: Option<CustomerKey>,
    /// What keeps two uploads of one id from replacing each other.
    pub(crate) creation: Creation,
    /// What the server takes for an entity tag in `If-Match` of a write; `None` where it is not used.
    matching: Option<Matching>,
}

/// What keeps two uploads of one id from replacing each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Creation {
    /// `If-None-Match: *`, which the server honours with every kind of write.
    Atomic,
    /// The server honours it with `PutObject`, so that a small object can be taken by one upload at a time: a claim on the
    /// id. Ceph's gateway is one.
    Claimed,
    /// Nothing but a look before and after.
    Looked,
}

/// How an entity tag stands in `If-Match` of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matching {
    /// In quotes, as the standard says.
    Quoted,
    /// Without: Ceph's gateway compares it so.
    Bare,
}

/// A key that only the client keeps (SSE-C).
#[derive(Clone)]
struct CustomerKey {
    key: String,
    md5: String,
}

impl std::fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Adds a customer's key to a request that writes or reads content.
macro_rules! keyed {
    ($client:expr, $call:expr) => {{
        let key = $client.sse_customer.as_ref();
        $call
            .set_sse_customer_algorithm(key.map(|_| "AES256".to_owned()))
            .set_sse_customer_key(key.map(|key| key.key.clone()))
            .set_sse_customer_key_md5(key.map(|key| key.md5.clone()))
    }};
}

/// An object, as a `HEAD` describes it.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) size: u64,
    pub(crate) etag: Option<String>,
    /// What ties it to its sidecar.
    pub(crate) token: Option<String>,
    /// What the server has computed of all of it, in base64, where checksums are kept.
    pub(crate) checksum: Option<String>,
}

/// An object, as a list shows it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) key: String,
    pub(crate) size: u64,
    /// Seconds since 1970 by the server's clock.
    pub(crate) modified: i64,
}

/// A multipart upload that is neither completed nor aborted.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) key: String,
    pub(crate) upload: String,
    /// Seconds since 1970 by the server's clock.
    pub(crate) initiated: i64,
}

/// What a write asks of the object that is there already.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Only<'a> {
    /// Nothing.
    Always,
    /// That there is none.
    New,
    /// That it is still this one.
    Instead(&'a str),
}

/// What a part is copied from.
#[derive(Clone, Debug)]
pub(crate) struct Source<'a> {
    pub(crate) key: &'a str,
    /// What it must still be.
    pub(crate) etag: Option<&'a str>,
    /// Of its bytes, these; all of them where it is not set.
    pub(crate) range: Option<Range<u64>>,
}

/// What is not a letter, a digit, or one of these, is quoted in the name of a source.
const QUOTED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Gives up on `call` after `limit`.
async fn sent<T, E>(
    what: &str,
    limit: Duration,
    call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
) -> Result<T>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let answer = tokio::time::timeout(limit, call).await.map_err(|_| late(what))?;
    answer.map_err(|error| from_sdk(what, &error))
}

/// How far the sending of a body has come, and since when it has not moved.
#[derive(Clone, Debug)]
struct Headway(Arc<Mutex<(u64, Instant)>>);

impl Headway {
    fn new(len: u64) -> Self {
        Self(Arc::new(Mutex::new((len, Instant::now()))))
    }

    /// What is left to send, and how long nothing of it has been taken.
    fn now(&self) -> (u64, Duration) {
        let (left, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (left, since.elapsed())
    }

    fn moved(&self, left: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (left, Instant::now());
    }

    /// As [`sent`], but gives up on a connection as soon as it is dead.
    async fn sent<T, E>(
        &self,
        what: &str,
        limit: Duration,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let begun = Instant::now();
        let dead = async {
            loop {
                let (left, still) = self.now();
                // The system still sends what it has taken: on a slow line, that is most of a part.
                let sending = begun.elapsed().saturating_sub(still);
                let patience = if left > 0 { STALLED } else { STALLED.max(sending * 4) };
                match patience.checked_sub(still) {
                    Some(rest) if !rest.is_zero() => tokio::time::sleep(rest).await,
                    _ => return,
                }
            }
        };
        tokio::select! {
            answer = sent(what, limit, call) => answer,
            () = dead => Err(late(what)),
        }
    }
}

/// A body that tells its headway.
struct Watched {
    payload: Payload,
    headway: Headway,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = Pin::new(&mut self.payload).poll_frame(context);
        self.headway.moved(self.payload.len());
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.payload.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        Body::size_hint(&self.payload)
    }
}

impl Client {
    /// Prepares a client; nothing is sent, except by the SDK to find credentials.
    pub(crate) async fn new(config: &S3Config) -> Result<Self> {
        let mut trust = TrustStore::default();
        if let Some(path) = &config.ca_file {
            let path = path.clone();
            let read = move || std::fs::read(path).map_err(|e| Error::from_io("cannot read `ca_file`", e));
            trust = trust.with_pem_certificate(checked_pem(blocking(read).await?)?);
        }
        let tls = TlsContext::builder().with_trust_store(trust).build().map_err(|e| {
            Error::new(ErrorKind::Invalid, "the certificates of `ca_file` cannot be used").with_source(e)
        })?;
        let proxy = proxy_of(config)?;
        let http =
            aws_smithy_http_client::Builder::new().build_with_connector_fn(move |settings, components| {
                let mut connector = Connector::builder();
                connector.set_connector_settings(settings.cloned());
                connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
                connector
                    .proxy_config(proxy.clone())
                    .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
                    .tls_context(tls.clone())
                    .build()
            });
        // Retries are made here and in the layers, where it is known what may be sent twice.
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(Duration::from_secs(10)).build());
        let region = config.region.clone().or_else(|| config.endpoint.as_ref().map(|_| "us-east-1".into()));
        if let Some(region) = region {
            loader = loader.region(Region::new(region));
        }
        if let Some(profile) = &config.profile {
            loader = loader.profile_name(profile);
        }
        if let (Some(key), Some(secret)) = (&config.access_key, &config.secret_key) {
            let session = config.session_token.as_ref().map(|token| token.expose().to_owned());
            loader = loader.credentials_provider(Credentials::new(
                key.expose(),
                Secret::expose(secret),
                session,
                None,
                "imagestore",
            ));
        }
        let shared = loader.load().await;
        let in_path = match config.path_style {
            PathStyle::Auto => config.endpoint.is_some(),
            PathStyle::On => true,
            PathStyle::Off => false,
        };
        // Checksums that the SDK adds unasked are refused by many servers, or stored as content; but one that is asked
        // for it computes only where it may add them.
        let checksums = match config.checksum {
            Checksum::Crc32c | Checksum::Crc64nvme => RequestChecksumCalculation::WhenSupported,
            Checksum::Sha256 | Checksum::Md5 | Checksum::None => RequestChecksumCalculation::WhenRequired,
        };
        let mut builder = aws_sdk_s3::config::Builder::from(&shared)
            .request_checksum_calculation(checksums)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .force_path_style(in_path);
        if let Some(endpoint) = &config.endpoint {
            builder = builder.endpoint_url(endpoint);
        }
        Ok(Self {
            s3: aws_sdk_s3::Client::from_conf(builder.build()),
            bucket: config.bucket.clone(),
            checksum: config.checksum,
            storage_class: config.storage_class.as_deref().map(StorageClass::from),
            tags: tags_of(config),
            sse: match config.sse {
                Some(Sse::Aes256) => Some(ServerSideEncryption::Aes256),
                Some(Sse::Kms) => Some(ServerSideEncryption::AwsKms),
                Some(Sse::Customer) | None => None,
            },
            sse_kms_key: config.sse_kms_key.clone(),
            sse_customer: config.sse_customer_key.as_ref().map(customer_key).transpose()?,
            // Until it has been tried out, what Amazon does.
            creation: match config.conditional_writes {
                Conditional::Auto | Conditional::On => Creation::Atomic,
                Conditional::Put => Creation::Claimed,
                Conditional::Off => Creation::Looked,
            },
            matching: match config.conditional_writes {
                Conditional::Auto | Conditional::On => Some(Matching::Quoted),
                Conditional::Put | Conditional::Off => None,
            },
        })
    }

    /// The same, but for requests that are signed for another region.
    pub(crate) fn in_region(self, region: &str) -> Self {
        let config = self.s3.config().to_builder().region(Region::new(region.to_owned())).build();
        Self { s3: aws_sdk_s3::Client::from_conf(config), ..self }
    }

    /// A client for another bucket of the same server, with other credentials.
    pub(crate) fn of(&self, theirs: &Theirs) -> Self {
        let (key, secret) = (theirs.access_key.expose(), theirs.secret_key.expose());
        let credentials = Credentials::new(key, secret, None, None, "location");
        let config = self.s3.config().to_builder().credentials_provider(credentials).build();
        Self { s3: aws_sdk_s3::Client::from_conf(config), bucket: theirs.bucket.clone(), ..self.clone() }
    }

    /// Whether checksums are kept with objects, which are then asked for with each part.
    pub(crate) fn keeps_checksums(&self) -> bool {
        self.algorithm().is_some()
    }

    /// Whether a write can be made to fail if the object is no longer the one that had an entity tag.
    pub(crate) fn matches(&self) -> bool {
        self.matching.is_some()
    }

    /// The region that requests are signed for.
    pub(crate) fn region(&self) -> Option<String> {
        self.s3.config().region().map(|region| region.as_ref().to_owned())
    }

    /// Fails if the bucket cannot be used, and creates it if it is missing and `create` says so.
    ///
    /// A list of one object, since its errors tell their code, other than those of `HeadBucket`.
    pub(crate) async fn check_bucket(&self, prefix: &str, create: bool) -> Result<()> {
        let list = || self.s3.list_objects_v2().bucket(&self.bucket).prefix(prefix).max_keys(1).send();
        let outcome = tokio::time::timeout(CALL, list()).await.map_err(|_| late("look into the bucket"))?;
        let error = match outcome {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if !create || error.code() != Some("NoSuchBucket") {
            return Err(match from_sdk("look into the bucket", &error) {
                // An S3 server says that it is the bucket which is missing.
                error if error.kind() == ErrorKind::NotFound => {
                    Error::new(ErrorKind::Invalid, error.message().to_owned()).with_hint(NO_S3)
                }
                error => error,
            });
        }
        let mut call = self.s3.create_bucket().bucket(&self.bucket);
        // Amazon takes no constraint for its first region.
        if let Some(region) = self.region().filter(|region| region != "us-east-1") {
            let constraint = BucketLocationConstraint::from(region.as_str());
            call = call.create_bucket_configuration(
                CreateBucketConfiguration::builder().location_constraint(constraint).build(),
            );
        }
        let created = tokio::time::timeout(CALL, call.send()).await.map_err(|_| late("create the bucket"))?;
        match created {
            Ok(_) => Ok(()),
            // Another one was faster.
            Err(error) if error.code() == Some("BucketAlreadyOwnedByYou") => Ok(()),
            Err(error) => Err(from_sdk("create the bucket", &error)),
        }
    }

    /// The same client, with what the server makes of the conditions of a write: found out by writing `key` some times.
    /// What does not depend on each other is asked at once.
    pub(crate) async fn probed(&self, key: &str) -> Result<Self> {
        let asked = Self { creation: Creation::Atomic, matching: Some(Matching::Quoted), ..self.clone() };
        let (creation, matching) = match again(|| asked.put(key, Bytes::new(), Only::New)).await {
            Err(error) if error.kind() == ErrorKind::Unsupported => (Creation::Looked, None),
            // An earlier attempt came through, and its reply was lost.
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            put => {
                let tried = Box::pin(asked.try_conditions(key, put.ok().flatten())).await;
                again(|| self.delete(key)).await?;
                tried?
            }
        };
        Ok(Self { creation, matching, ..self.clone() })
    }

    /// What keeps `key` from being replaced, which there is.
    async fn try_conditions(&self, key: &str, tag: Option<String>) -> Result<(Creation, Option<Matching>)> {
        let (second, matching, upload) = tokio::join!(
            again(|| self.put(key, Bytes::new(), Only::New)),
            self.try_matching(key, tag),
            again(|| self.create(key, "probe", false)),
        );
        let upload = upload?;
        let creation = match second {
            Ok(_) => Ok(Creation::Looked),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.try_complete(key, &upload).await,
            Err(error) => Err(error),
        };
        again(|| self.abort(key, &upload)).await?;
        match creation? {
            Creation::Looked => Ok((Creation::Looked, None)),
            creation => Ok((creation, matching?)),
        }
    }

    /// How an entity tag has to stand in `If-Match` for `key` to be replaced.
    async fn try_matching(&self, key: &str, tag: Option<String>) -> Result<Option<Matching>> {
        let tag = match tag {
            None => again(|| self.head(key)).await?.and_then(|object| object.etag),
            tag => tag,
        };
        let Some(tag) = tag else { return Ok(None) };
        for matching in [Matching::Quoted, Matching::Bare] {
            let asked = Self { matching: Some(matching), ..self.clone() };
            match again(|| asked.put(key, Bytes::new(), Only::Instead(&tag))).await {
                Ok(_) => return Ok(Some(matching)),
                Err(error) if error.is_retryable() => return Err(error),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Whether an object that is made of parts does not replace `key` either.
    async fn try_complete(&self, key: &str, upload: &str) -> Result<Creation> {
        let probe = Payload::from(Bytes::from_static(b"probe"));
        let part = again(|| self.part(key, upload, 1, &probe, false)).await?;
        match self.complete(key, upload, vec![part], Only::New).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Creation::Atomic),
            Err(error) if error.is_retryable() => Err(error),
            Ok(()) => Ok(Creation::Claimed),
            // Whatever it says, it does not do it.
            Err(error) => {
                tracing::debug!(%error, "no conditions for objects made of parts");
                Ok(Creation::Claimed)
            }
        }
    }

    /// Opens connections beside the first one, for the transfer that most likely follows: each takes a round trip, with
    /// TLS two. A request is the only way to have one opened; what it says is of no interest.
    pub(crate) fn warm_up(&self, connections: u32) {
        for _ in 0..connections {
            let call = self.s3.head_bucket().bucket(&self.bucket).send();
            tokio::spawn(async move { tokio::time::timeout(CALL, call).await.is_ok() });
        }
    }

    /// Describes an object, or says that there is none.
    pub(crate) async fn head(&self, key: &str) -> Result<Option<Object>> {
        const WHAT: &str = "look at an object";
        let written = |what| {
            Err(Error::new(ErrorKind::Unavailable, format!("cannot {what}: it is just being written")))
        };
        let wanted = self.algorithm().map(|_| ChecksumMode::Enabled);
        let call = keyed!(self, self.s3.head_object().bucket(&self.bucket).key(key));
        let call = call.set_checksum_mode(wanted).send();
        let error = match tokio::time::timeout(CALL, call).await.map_err(|_| late(WHAT))? {
            Ok(found) => {
                return Ok(Some(Object {
                    size: found.content_length().and_then(|len| len.try_into().ok()).ok_or_else(no_length)?,
                    etag: found.e_tag().map(str::to_owned),
                    token: token_of(found.metadata()),
                    checksum: match self.checksum {
                        Checksum::Crc32c => found.checksum_crc32_c,
                        Checksum::Crc64nvme => found.checksum_crc64_nvme,
                        Checksum::Sha256 | Checksum::Md5 | Checksum::None => None,
                    },
                }));
            }
            Err(error) => error,
        };
        let SdkError::ServiceError(service) = &error else { return Err(from_sdk(WHAT, &error)) };
        if service.raw().status().is_server_error() {
            return Err(from_sdk(WHAT, &error));
        }
        // The answer to a HEAD has no body, so no code: whether it is the key that is missing or the bucket, or what
        // is wrong with the credentials, only a GET tells.
        let call = keyed!(self, self.s3.get_object().bucket(&self.bucket).key(key)).range("bytes=0-0").send();
        match tokio::time::timeout(CALL, call).await.map_err(|_| late(WHAT))? {
            // An empty one has no first byte.
            Err(why) if why.raw_response().is_some_and(|raw| raw.status().as_u16() == 416) => written(WHAT),
            Ok(_) => written(WHAT),
            Err(why) => match from_sdk(WHAT, &why) {
                why if why.kind() == ErrorKind::NotFound => Ok(None),
                why => Err(why),
            },
        }
    }

    /// Describes an object that most likely is not there, which this says at once: to a `HEAD` of a missing one, it takes
    /// another request to hear what it is that is missing.
    pub(crate) async fn find(&self, key: &str) -> Result<Option<Object>> {
        const WHAT: &str = "look for an object";
        let call = keyed!(self, self.s3.get_object().bucket(&self.bucket).key(key)).range("bytes=0-0").send();
        match tokio::time::timeout(CALL, call).await.map_err(|_| late(WHAT))? {
            Ok(_) => self.head(key).await,
            Err(error) => match from_sdk(WHAT, &error) {
                why if why.kind() == ErrorKind::NotFound => Ok(None),
                // An empty one has no first byte.
                _ if error.raw_response().is_some_and(|raw| raw.status().as_u16() == 416) => {
                    self.head(key).await
                }
                why => Err(why),
            },
        }
    }

    /// Reads a small object, or says that there is none.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        const WHAT: &str = "read the metadata of a blob";
        let read = async {
            let call = keyed!(self, self.s3.get_object().bucket(&self.bucket).key(key));
            let found = match call.send().await {
                Ok(found) => found,
                Err(error) => {
                    let error = from_sdk(WHAT, &error);
                    return if error.kind() == ErrorKind::NotFound { Ok(None) } else { Err(error) };
                }
            };
            let mut all = Vec::new();
            let mut body = found.body;
            while let Some(bytes) = body.next().await {
                all.extend_from_slice(&bytes.map_err(|e| broken(WHAT, &e))?);
                if all.len() > MAX_SIDECAR {
                    return Err(Error::new(ErrorKind::Corrupt, "the blob's stored metadata is far too long"));
                }
            }
            Ok(Some(Bytes::from(all)))
        };
        tokio::time::timeout(CALL, read).await.map_err(|_| late(WHAT))?
    }

    /// Reads `range` of the object that has `etag`, exactly. Goes on where an answer broke off, unless nothing came of it.
    pub(crate) async fn get_range(
        &self,
        key: &str,
        etag: Option<&str>,
        mut range: Range<u64>,
        size: u64,
        mut gathered: Gathered,
    ) -> Result<()> {
        let mut reading = GoingOn::default();
        loop {
            let before = range.start;
            let outcome = self.get_some(key, etag, &mut range, size, &mut gathered).await;
            if !reading.after(outcome, range.start > before).await? {
                break;
            }
        }
        gathered.flush().await;
        Ok(())
    }

    /// Reads what it gets of `rest`, whose start moves on.
    async fn get_some(
        &self,
        key: &str,
        etag: Option<&str>,
        rest: &mut Range<u64>,
        size: u64,
        gathered: &mut Gathered,
    ) -> Result<()> {
        const WHAT: &str = "read a blob";
        // Of waiting for the server: how long the reader takes is its own business.
        let mut left = transfer(rest.end - rest.start);
        let call = keyed!(self, self.s3.get_object().bucket(&self.bucket).key(key))
            .range(format!("bytes={}-{}", rest.start, rest.end - 1))
            .set_if_match(etag.map(str::to_owned));
        let found = match within(WHAT, &mut left, call.send()).await? {
            Ok(found) => found,
            Err(error) => return Err(gone(from_sdk(WHAT, &error))),
        };
        let (mut skip, most) = first_byte(found.content_range(), found.content_length(), rest, size)?;
        let mut body = found.body;
        while !rest.is_empty() {
            let Some(bytes) = within(WHAT, &mut left, body.next()).await? else { break };
            let mut bytes = bytes.map_err(|e| broken(WHAT, &e))?;
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            bytes.advance(skipped as usize);
            bytes.truncate((rest.end - rest.start) as usize);
            rest.start += bytes.len() as u64;
            gathered.push(&bytes).await;
        }
        match rest.end - rest.start {
            0 => Ok(()),
            missing => {
                let text = format!("cannot {WHAT}: the answer ends {missing} of {most} bytes early");
                Err(Error::new(ErrorKind::Unavailable, text))
            }
        }
    }

    /// Writes an object of the store's own, and gives its entity tag.
    pub(crate) async fn put(&self, key: &str, bytes: Bytes, only: Only<'_>) -> Result<Option<String>> {
        let mut call = self.s3.put_object().bucket(&self.bucket).key(key).body(ByteStream::from(bytes));
        match only {
            Only::New if self.creation != Creation::Looked => call = call.if_none_match("*"),
            Only::Instead(etag) => {
                call = call.set_if_match(self.matching.map(|matching| match matching {
                    Matching::Quoted => etag.to_owned(),
                    Matching::Bare => etag.trim_matches('"').to_owned(),
                }));
            }
            _ => {}
        }
        let call = self.encrypted_put(call);
        Ok(sent("write the metadata of a blob", CALL, Box::pin(call.send())).await?.e_tag)
    }

    /// Writes a whole blob, if the key is free.
    pub(crate) async fn put_blob(&self, key: &str, payload: &Payload, token: &str) -> Result<()> {
        let limit = transfer(payload.len());
        let sums = self.sums(payload).await?;
        let headway = Headway::new(payload.len());
        let mut call = self
            .s3
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .metadata(TOKEN, token)
            .set_storage_class(self.storage_class.clone())
            .set_tagging(self.tags.clone())
            .set_checksum_algorithm(self.algorithm())
            .set_checksum_crc32_c(sums.crc32c)
            .set_checksum_crc64_nvme(sums.crc64nvme)
            .set_content_md5(sums.md5)
            .body(body(payload, &headway));
        if self.creation != Creation::Looked {
            call = call.if_none_match("*");
        }
        let call = self.encrypted_put(call).customize().interceptor(Signed(sums.sha256));
        headway.sent("write a blob", limit, Box::pin(call.send())).await.map(drop)
    }

    fn encrypted_put(
        &self,
        call: aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder,
    ) -> aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder {
        keyed!(self, call)
            .set_server_side_encryption(self.sse.clone())
            .set_ssekms_key_id(self.sse_kms_key.clone())
    }

    /// What a server that keeps checksums says of an object of these parts, or of one `crc64nvme`.
    pub(crate) fn checksum_of(&self, parts: &[CompletedPart], crc64nvme: Option<&[u8]>) -> Option<String> {
        match self.checksum {
            // Always of the whole object, however it was sent.
            Checksum::Crc64nvme => crc64nvme.map(base64::encode),
            // The checksum of those of the parts, whose number goes along.
            Checksum::Crc32c if !parts.is_empty() => {
                let mut sums = Vec::new();
                for part in parts {
                    sums.extend(base64::decode(part.checksum_crc32_c()?).ok()?);
                }
                let sum = crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, &sums) as u32;
                Some(format!("{}-{}", base64::encode(sum.to_be_bytes()), parts.len()))
            }
            Checksum::Crc32c | Checksum::Sha256 | Checksum::Md5 | Checksum::None => None,
        }
    }

    fn algorithm(&self) -> Option<ChecksumAlgorithm> {
        match self.checksum {
            Checksum::Crc32c => Some(ChecksumAlgorithm::Crc32C),
            Checksum::Crc64nvme => Some(ChecksumAlgorithm::Crc64Nvme),
            Checksum::Sha256 | Checksum::Md5 | Checksum::None => None,
        }
    }

    /// What the server is told of a body.
    async fn sums(&self, payload: &Payload) -> Result<Sums> {
        let (checksum, payload) = (self.checksum, payload.clone());
        match checksum {
            Checksum::None => Ok(Sums::default()),
            _ => blocking(move || Ok(Sums::of(checksum, payload.pieces()))).await,
        }
    }

    /// Starts a multipart upload, with checksums that are `kept` or without.
    ///
    /// Checksums are all or nothing: named here, with each part, and at the end. MinIO computes none for parts that it
    /// copies, so an upload that may have such parts keeps none; those of single parts are compared all the same.
    pub(crate) async fn create(&self, key: &str, token: &str, kept: bool) -> Result<String> {
        const WHAT: &str = "start an upload";
        let call = keyed!(self, self.s3.create_multipart_upload().bucket(&self.bucket).key(key))
            .metadata(TOKEN, token)
            .set_storage_class(self.storage_class.clone())
            .set_tagging(self.tags.clone())
            .set_checksum_algorithm(self.algorithm().filter(|_| kept))
            .set_server_side_encryption(self.sse.clone())
            .set_ssekms_key_id(self.sse_kms_key.clone());
        let created = sent(WHAT, CALL, call.send()).await?;
        created.upload_id.ok_or_else(|| {
            Error::new(ErrorKind::Internal, format!("cannot {WHAT}: the answer has no upload id"))
        })
    }

    /// Sends one part.
    pub(crate) async fn part(
        &self,
        key: &str,
        upload: &str,
        number: i32,
        payload: &Payload,
        kept: bool,
    ) -> Result<CompletedPart> {
        const WHAT: &str = "send a part";
        let limit = transfer(payload.len());
        let sums = self.sums(payload).await?;
        let headway = Headway::new(payload.len());
        let sent_sums = (sums.crc32c.clone(), sums.crc64nvme.clone());
        let call = keyed!(self, self.s3.upload_part().bucket(&self.bucket).key(key))
            .upload_id(upload)
            .part_number(number)
            .set_checksum_algorithm(self.algorithm())
            .set_checksum_crc32_c(sums.crc32c)
            .set_checksum_crc64_nvme(sums.crc64nvme)
            .set_content_md5(sums.md5)
            .body(body(payload, &headway))
            .customize()
            .interceptor(Signed(sums.sha256));
        let part = headway.sent(WHAT, limit, Box::pin(call.send())).await?;
        if part.e_tag.is_none() {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("cannot {WHAT}: the answer has no entity tag"),
            ));
        }
        let other = |theirs: &Option<String>, ours: &Option<String>| {
            theirs.as_ref().zip(ours.as_ref()).is_some_and(|(theirs, ours)| theirs != ours)
        };
        if other(&part.checksum_crc32_c, &sent_sums.0) || other(&part.checksum_crc64_nvme, &sent_sums.1) {
            let text = format!("cannot {WHAT}: the server has computed another checksum of it");
            return Err(
                Error::new(ErrorKind::Unavailable, text).with_hint("the bytes were damaged on their way")
            );
        }
        let (crc32c, crc64nvme) =
            (kept && self.checksum == Checksum::Crc32c, kept && self.checksum == Checksum::Crc64nvme);
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(part.e_tag)
            .set_checksum_crc32_c(part.checksum_crc32_c.filter(|_| crc32c))
            .set_checksum_crc64_nvme(part.checksum_crc64_nvme.filter(|_| crc64nvme))
            .build())
    }

    /// Makes a part of what an object has, or of a range of it, without sending the bytes through here.
    pub(crate) async fn part_copy(
        &self,
        key: &str,
        upload: &str,
        number: i32,
        from: Source<'_>,
    ) -> Result<CompletedPart> {
        const WHAT: &str = "copy a part";
        let customer = self.sse_customer.as_ref();
        let call = keyed!(self, self.s3.upload_part_copy().bucket(&self.bucket).key(key))
            .upload_id(upload)
            .part_number(number)
            .copy_source(format!("{}/{}", self.bucket, utf8_percent_encode(from.key, QUOTED)))
            .set_copy_source_if_match(from.etag.map(str::to_owned))
            .set_copy_source_range(from.range.map(|range| format!("bytes={}-{}", range.start, range.end - 1)))
            .set_copy_source_sse_customer_algorithm(customer.map(|_| "AES256".to_owned()))
            .set_copy_source_sse_customer_key(customer.map(|key| key.key.clone()))
            .set_copy_source_sse_customer_key_md5(customer.map(|key| key.md5.clone()));
        // Ceph's gateway takes no PUT without a length.
        let call = call.customize().mutate_request(|request| {
            request.headers_mut().insert("content-length", "0");
        });
        let copied = sent(WHAT, COPY, Box::pin(call.send())).await?.copy_part_result;
        let part = copied.filter(|part| part.e_tag.is_some()).ok_or_else(|| {
            Error::new(ErrorKind::Internal, format!("cannot {WHAT}: the answer has no entity tag"))
        })?;
        Ok(CompletedPart::builder().part_number(number).set_e_tag(part.e_tag).build())
    }

    /// Makes an object of the parts. An error within a reply of status 200 is an error too: the SDK looks for it.
    pub(crate) async fn complete(
        &self,
        key: &str,
        upload: &str,
        parts: Vec<CompletedPart>,
        only: Only<'_>,
    ) -> Result<()> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let mut call = keyed!(self, self.s3.complete_multipart_upload().bucket(&self.bucket).key(key))
            .upload_id(upload)
            .multipart_upload(parts);
        if matches!(only, Only::New) && self.creation == Creation::Atomic {
            call = call.if_none_match("*");
        }
        sent("complete an upload", COMMIT, call.send()).await.map(drop)
    }

    /// Removes an upload and all its parts. Parts that were on their way may survive the first attempt, so it is
    /// repeated until the server says that there is none.
    pub(crate) async fn abort(&self, key: &str, upload: &str) -> Result<()> {
        let mut unknown = 0;
        for _ in 0..20 {
            let call = self.s3.abort_multipart_upload().bucket(&self.bucket).key(key).upload_id(upload);
            match sent("abort an upload", CALL, call.send()).await {
                Err(error) if error.kind() == ErrorKind::NotFound => unknown += 1,
                outcome => outcome.map(drop)?,
            }
            match self.parts(key, upload).await? {
                None => return Ok(()),
                Some(left) if left.count == 0 => return Ok(()),
                // Swift lists what an object was made of as the parts of an upload that there is no more.
                Some(_) if unknown > 1 => return Ok(()),
                Some(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        let text = "cannot abort an upload: parts of it come back again and again";
        Err(Error::new(ErrorKind::Unavailable, text).with_hint("something else still writes to it"))
    }

    /// Removes an object and all uploads of its key.
    pub(crate) async fn clear(&self, key: &str) -> Result<()> {
        for upload in self.uploads(key).await?.iter().filter(|upload| upload.key == key) {
            self.abort(key, &upload.upload).await?;
        }
        self.delete(key).await
    }

    /// A URL under which an object can be read for `lifetime`.
    pub(crate) async fn presign(&self, key: &str, lifetime: Duration) -> Result<Secret> {
        if self.sse_customer.is_some() {
            return Err(Error::unsupported("URLs for blobs that are encrypted with a key of this side"));
        }
        let lifetime = PresigningConfig::expires_in(lifetime).map_err(|_| {
            Error::new(ErrorKind::Invalid, "a URL of S3 is good for a week at most")
                .with_hint("ask for a shorter lifetime")
        })?;
        let signed = self.s3.get_object().bucket(&self.bucket).key(key).presigned(lifetime).await;
        let signed = signed.map_err(|error| from_sdk("sign a URL", &error))?;
        Ok(Secret::new(signed.uri()))
    }

    /// The parts that an upload has, if there is such an upload.
    pub(crate) async fn parts(&self, key: &str, upload: &str) -> Result<Option<Parts>> {
        let mut all = Parts::default();
        let mut marker = None;
        loop {
            let call = self
                .s3
                .list_parts()
                .bucket(&self.bucket)
                .key(key)
                .upload_id(upload)
                .set_part_number_marker(marker.take());
            let page = match sent("list the parts of an upload", CALL, call.send()).await {
                Ok(page) => page,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            for part in page.parts() {
                all.count += 1;
                all.bytes += part.size().and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
                all.newest = all.newest.max(part.last_modified().map(|time| time.secs()));
            }
            match page.next_part_number_marker.filter(|_| page.is_truncated == Some(true)) {
                Some(next) => marker = Some(next),
                None => return Ok(Some(all)),
            }
        }
    }

    /// Removes an object; a missing one is none the less removed.
    pub(crate) async fn delete(&self, key: &str) -> Result<()> {
        let call = self.s3.delete_object().bucket(&self.bucket).key(key);
        match sent("delete an object", CALL, call.send()).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A page of the objects right under `prefix`, and where the next page starts.
    pub(crate) async fn list(
        &self,
        prefix: &str,
        from: Option<String>,
    ) -> Result<(Vec<Listed>, Option<String>)> {
        let call = self
            .s3
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(prefix)
            .delimiter("/")
            .set_continuation_token(from);
        let page = sent("list the bucket", CALL, call.send()).await?;
        let next = page.next_continuation_token.filter(|_| page.is_truncated == Some(true));
        let objects = page.contents.unwrap_or_default().into_iter().filter_map(|object| {
            Some(Listed {
                key: object.key?,
                size: object.size.and_then(|size| size.try_into().ok())?,
                modified: object.last_modified.map(|time| time.secs()).unwrap_or_default(),
            })
        });
        Ok((objects.collect(), next))
    }

    /// The unfinished uploads under `prefix`.
    ///
    /// MinIO takes a prefix for the whole key, and without one it forgets uploads when it is restarted.
    pub(crate) async fn uploads(&self, prefix: &str) -> Result<Vec<Pending>> {
        let mut all = Vec::new();
        let (mut key, mut id) = (None, None);
        loop {
            let call = self
                .s3
                .list_multipart_uploads()
                .bucket(&self.bucket)
                .prefix(prefix)
                .set_key_marker(key.take())
                .set_upload_id_marker(id.take());
            let page = sent("list unfinished uploads", CALL, call.send()).await?;
            all.extend(page.uploads.unwrap_or_default().into_iter().filter_map(|upload| {
                Some(Pending {
                    key: upload.key?,
                    upload: upload.upload_id?,
                    initiated: upload.initiated.map(|time| time.secs()).unwrap_or_default(),
                })
            }));
            if page.is_truncated != Some(true) || page.next_key_marker.is_none() {
                return Ok(all);
            }
            (key, id) = (page.next_key_marker, page.next_upload_id_marker);
        }
    }
}

/// The checksum of a body that goes along with it, as its header has it.
#[derive(Default)]
struct Sums {
    /// In hexadecimal, the others in base64.
    sha256: Option<String>,
    md5: Option<String>,
    crc32c: Option<String>,
    crc64nvme: Option<String>,
}

impl Sums {
    fn of(checksum: Checksum, pieces: &[Bytes]) -> Self {
        let hash = |algorithm| {
            let mut hasher = Hasher::new(algorithm);
            pieces.iter().for_each(|piece| hasher.update(piece));
            hasher.finish()
        };
        let none = Self::default();
        match checksum {
            Checksum::None => none,
            Checksum::Sha256 => Self { sha256: Some(hex::encode(hash(Algorithm::Sha256))), ..none },
            Checksum::Md5 => Self { md5: Some(base64::encode(hash(Algorithm::Md5))), ..none },
            Checksum::Crc64nvme => {
                Self { crc64nvme: Some(base64::encode(hash(Algorithm::Crc64Nvme))), ..none }
            }
            Checksum::Crc32c => {
                let mut crc = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
                pieces.iter().for_each(|piece| crc.update(piece));
                Self { crc32c: Some(base64::encode((crc.finalize() as u32).to_be_bytes())), ..none }
            }
        }
    }
}

/// A body that is sent piece by piece. The SDK says no length of an empty one but if it knows all of it.
fn body(payload: &Payload, headway: &Headway) -> ByteStream {
    match payload.is_empty() {
        true => ByteStream::from(Bytes::new()),
        false => {
            let (payload, headway) = (payload.clone(), headway.clone());
            ByteStream::from_body_1_x(Watched { payload, headway })
        }
    }
}

/// Signs a body by its SHA-256. Without one, and with other checksums, the body is not signed.
#[derive(Debug)]
struct Signed(Option<String>);

#[dyn_dispatch_hint]
impl Intercept for Signed {
    fn name(&self) -> &'static str {
        "Signed"
    }

    fn modify_before_signing(
        &self,
        _: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        config.interceptor_state().store_put(match &self.0 {
            Some(sha256) => PayloadSigningOverride::Precomputed(sha256.clone()),
            None => PayloadSigningOverride::UnsignedPayload,
        });
        Ok(())
    }
}

/// What is there of an upload.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parts {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    /// When the last one came, in seconds since 1970 by the server's clock.
    pub(crate) newest: Option<i64>,
}

/// The longest sidecar that is read; properties are at most 1 KiB before they are escaped.
const MAX_SIDECAR: usize = 64 << 10;

/// Servers give the names of user metadata back in any case.
fn token_of(metadata: Option<&std::collections::HashMap<String, String>>) -> Option<String> {
    metadata?.iter().find(|(name, _)| name.eq_ignore_ascii_case(TOKEN)).map(|(_, token)| token.clone())
}

/// How many bytes of the answer to skip, and how long it is: a server may ignore a range and send all, or send it and
/// not say so.
fn first_byte(
    content_range: Option<&str>,
    length: Option<i64>,
    range: &Range<u64>,
    size: u64,
) -> Result<(u64, u64)> {
    let wanted = range.end - range.start;
    let length = length.and_then(|length| u64::try_from(length).ok());
    let said = match content_range {
        Some(text) => {
            let span = text.strip_prefix("bytes ").and_then(|text| text.split_once('/'));
            let span = span.and_then(|(span, _)| span.split_once('-'));
            span.and_then(|(start, end)| Some((start.trim().parse().ok()?, end.trim().parse().ok()?)))
        }
        None if length == Some(wanted) => Some((range.start, range.end - 1)),
        None if length == Some(size) => Some((0, size.saturating_sub(1))),
        None => None,
    };
    match said {
        Some((start, end)) if start <= range.start && range.end - 1 <= end => {
            Ok((range.start - start, length.unwrap_or((end - start).saturating_add(1))))
        }
        _ => Err(Error::new(ErrorKind::Corrupt, "the server sent another range than it was asked for")),
    }
}

/// What a failed condition means to a reader.
fn gone(error: Error) -> Error {
    match error.kind() {
        ErrorKind::AlreadyExists => {
            Error::new(ErrorKind::NotFound, "the blob was replaced since it was opened")
                .with_hint("open it again")
        }
        ErrorKind::NotFound => Error::new(ErrorKind::NotFound, "the blob was deleted since it was opened"),
        _ => error,
    }
}

fn broken(what: &str, error: &aws_sdk_s3::primitives::ByteStreamError) -> Error {
    let text = aws_sdk_s3::error::DisplayErrorContext(error).to_string();
    Error::new(ErrorKind::Unavailable, format!("cannot {what}: the connection broke: {text}"))
}

fn no_length() -> Error {
    Error::new(ErrorKind::Internal, "the server does not say how long an object is")
}

/// The tags as a header names them.
fn tags_of(config: &S3Config) -> Option<String> {
    let quoted = |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let tags: Vec<String> =
        config.tags.iter().map(|(name, value)| format!("{}={}", quoted(name), quoted(value))).collect();
    (!tags.is_empty()).then(|| tags.join("&"))
}

fn customer_key(key: &Secret) -> Result<CustomerKey> {
    let key = key.expose().trim();
    let bytes = base64::decode(key).unwrap_or_default();
    if bytes.len() != 32 {
        return Err(Error::new(ErrorKind::Invalid, "`sse_customer_key` is not 32 bytes in base64")
            .with_hint("make one with: openssl rand -base64 32"));
    }
    let sums = Sums::of(Checksum::Md5, &[bytes.into()]);
    Ok(CustomerKey { key: key.to_owned(), md5: sums.md5.unwrap_or_default() })
}

/// What no proxy reaches: this host, and what hands credentials out to instances, containers and pods.
const NEARBY: &str = "localhost,127.0.0.0/8,::1,169.254.0.0/16,fe80::/10,fd00:ec2::/32";

/// The way to the server.
fn proxy_of(config: &S3Config) -> Result<ProxyConfig> {
    match config.proxy.as_ref().map(Secret::expose) {
        None => Ok(ProxyConfig::disabled()),
        Some("environment") => Ok(ProxyConfig::from_env()),
        // Not quoted: it may hold credentials.
        Some(proxy) => ProxyConfig::all(proxy).map(|proxy| proxy.no_proxy(NEARBY)).map_err(|_| {
            Error::new(ErrorKind::Invalid, "`proxy` is not http:// with a host and a port")
                .with_hint("a proxy looks like http://proxy.example.org:3128")
        }),
    }
}

/// The SDK panics over certificates that it cannot read.
fn checked_pem(pem: Vec<u8>) -> Result<Vec<u8>> {
    let invalid =
        || Error::new(ErrorKind::Invalid, "`ca_file` holds no certificates in PEM, or damaged ones");
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| invalid().with_source(e))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|e| invalid().with_source(e))?;
    }
    if roots.is_empty() { Err(invalid()) } else { Ok(pem) }
}

/// Lets every parser of headers, settings and certificates see a text.
#[cfg(fuzzing)]
pub(crate) fn parse_all(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let number =
        |at: usize| input.get(at..at + 8).and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
    let start = number(0).unwrap_or(7) >> (input.len() % 64);
    let range = start..start.saturating_add(number(8).unwrap_or(9)).max(1);
    if let (false, length) = (range.is_empty(), number(16).map(|length| length as i64)) {
        for said in [None, Some(&*text)] {
            if let Ok((skip, most)) = first_byte(said, length, &range, number(24).unwrap_or(99)) {
                assert!(skip <= range.start && (length.is_some() || most >= range.end - range.start));
            }
        }
    }
    let names = text.split('\n').map(|name| (name.to_owned(), text.clone().into_owned())).collect();
    let _ = token_of(Some(&names));
    let _ = customer_key(&Secret::new(&*text)).is_ok();
    let mut config = S3Config::new("bucket");
    config.proxy = Some(Secret::new(&*text));
    let _ = proxy_of(&config).is_ok();
    let _ = checked_pem(input.to_vec()).is_ok();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_a_server_says_of_a_range_it_is_one_that_has_what_was_asked_for(
            said in proptest::option::of("bytes [0-9]{0,20}-[0-9]{0,20}/\\PC{0,5}|\\PC{0,40}"),
            length in proptest::option::of(any::<i64>()),
            start in any::<u64>(),
            len in 1..u64::MAX,
            size in any::<u64>(),
        ) {
            let range = start..start.saturating_add(len);
            if let Ok((skip, most)) = first_byte(said.as_deref(), length, &range, size) {
                prop_assert!(skip <= range.start);
                prop_assert!(length.is_some() || most >= range.end - range.start);
            }
        }

        #[test]
        fn what_is_no_certificate_does_not_get_to_where_it_panics(
            text in "(-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]{0,60}\n(-----END CERTIFICATE-----\n)?){0,2}\\PC{0,9}",
        ) {
            prop_assert!(checked_pem(text.into_bytes()).is_err());
        }

        #[test]
        fn no_text_makes_a_setting_panic(text in "(http://)?\\PC{0,40}") {
            let mut config = S3Config::new("bucket");
            config.proxy = Some(Secret::new(&text));
            let _ = (proxy_of(&config).is_ok(), customer_key(&Secret::new(&text)).is_ok());
        }
    }

    #[test]
    fn a_range_is_taken_only_as_what_it_is() {
        let range = 10..20;
        let first = |content_range, length| first_byte(content_range, length, &range, 100);
        assert_eq!(first(Some("bytes 10-19/100"), Some(10)).unwrap().0, 0);
        assert_eq!(first(Some("bytes 0-99/100"), Some(100)).unwrap().0, 10);
        assert_eq!(first(None, Some(10)).unwrap().0, 0);
        assert_eq!(first(None, Some(100)).unwrap().0, 10);
        for (content_range, length) in [
            (Some("bytes 11-20/100"), Some(10)),
            (Some("bytes 10-18/100"), Some(9)),
            (Some("nonsense"), Some(10)),
            (None, Some(50)),
            (None, None),
        ] {
            assert_eq!(first(content_range, length).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        assert_eq!(first_byte(None, Some(10), &(0..10), 10).unwrap().0, 0);
    }
}
