//! OpenTelemetry traces: a span for each request, with the steps that it took as children, sent over OTLP when it has ended.
//!
//! What an engine did is told by its answers, since an engine reaches no network: its steps are spans of the node's too.

use std::time::Duration;

use http::HeaderMap;
use opentelemetry::trace::{
    Span, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};

use crate::audit::Record;
use crate::visit::{Step, Visit};

/// What is left is sent within this time when the node stops.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// The client's trace, of the W3C's Trace Context.
const PARENT: &str = "traceparent";

/// Sends them.
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// To an OTLP collector that takes gRPC. `sample` is the part of requests that is traced whose senders do not trace them.
    pub fn start(endpoint: &str, sample: f64, node: &str) -> Result<Self, String> {
        // Not the variables that the library would read by itself: settings come from one place.
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_protocol(opentelemetry_otlp::Protocol::Grpc)
            .with_metadata(Default::default())
            .build()
            .map_err(|error| error.to_string())?;
        let resource = Resource::builder_empty()
            .with_service_name("tarn")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", node.to_owned()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample))))
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("tarn");
        Ok(Self { provider, tracer })
    }

    /// A request has ended.
    pub fn tell(&self, record: &Record, visit: &Visit) {
        let noted = record.noted();
        let (began, took) = record.span();
        let mut attributes = vec![
            KeyValue::new("tarn.outcome", record.outcome.clone()),
            KeyValue::new("tarn.bytes", i64::try_from(record.bytes).unwrap_or(i64::MAX)),
        ];
        let texts = [
            ("tarn.request", Some(visit.id().to_string())),
            ("tarn.tenant", noted.mart.as_ref().map(|id| id.tenant.to_string())),
            ("tarn.mart", noted.mart.as_ref().map(|id| id.mart.to_string())),
            ("tarn.query", noted.query.map(|id| id.to_string())),
            ("tarn.kind", noted.kind.map(str::to_owned)),
            ("tarn.principal", noted.principal.as_ref().map(|principal| principal.id.clone())),
        ];
        attributes.extend(texts.into_iter().filter_map(|(name, text)| Some(KeyValue::new(name, text?))));
        attributes.extend(record.rows.map(|rows| KeyValue::new("tarn.rows", i64::try_from(rows).unwrap_or(i64::MAX))));
        let parent =
            noted.parent.clone().map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        let mut span = SpanBuilder::from_name(record.action().to_owned())
            .with_kind(SpanKind::Server)
            .with_start_time(began)
            .with_attributes(attributes)
            .start_with_context(&self.tracer, &parent);
        if record.outcome != "ok" {
            span.set_status(Status::error(record.outcome.clone()));
        }
        let own = Context::new().with_remote_span_context(span.span_context().clone());
        for Step { name, began, took } in visit.steps() {
            let step = SpanBuilder::from_name(name).with_kind(SpanKind::Internal).with_start_time(began);
            step.start_with_context(&self.tracer, &own).end_with_timestamp(began + took);
        }
        span.end_with_timestamp(began + took);
    }

    /// Sends what is left.
    pub fn stop(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_WORDS) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// The span of the sender's of which a request is part.
pub fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    let parts: Vec<_> = headers.get(PARENT)?.to_str().ok()?.split('-').collect();
    // A later version may have more parts behind these.
    let [version, trace, span, flags, ..] = parts.as_slice() else { return None };
    if version.len() != 2 || *version == "ff" || (*version == "00" && parts.len() != 4) || flags.len() != 2 {
        return None;
    }
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
    };
    if !hex(trace, 32) || !hex(span, 16) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        flags & TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_senders_span_is_found_in_its_header() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(PARENT, text.parse().expect("legal"));
            parent(&headers)
        };
        let found = of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").expect("a parent");
        assert_eq!(found.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(found.is_sampled() && found.is_remote());
        assert!(!of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").expect("a parent").is_sampled());
        assert!(of("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").is_some());
        for wrong in [
            "",
            "00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b71692033-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert_eq!(parent(&HeaderMap::new()), None);
    }
}
