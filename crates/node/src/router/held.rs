//! A streamed answer that may still turn out to have written: a `nextval` hidden in a view commits when the read ends.
//!
//! The engine reports such a commit in a trailer; the end of the stream is held back until it is durable, and breaks if it is not.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use engine::wire::header;
use futures::StreamExt;
use futures::stream;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyStream, StreamBody};

use super::{Durability, Held, Moment};
use crate::engine_client::EngineBody;
use crate::marts::OpenMart;
use crate::watcher::Landed;

type Piece = Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>;

struct State {
    mart: Arc<OpenMart>,
    live: Held,
    durability: Durability,
    wait: Duration,
}

/// The engine's body with its trailers held until their commit is durable.
pub(super) fn hold(body: EngineBody, mart: Arc<OpenMart>, live: Held, durability: Durability, wait: Duration) -> Body {
    let state = State { mart, live, durability, wait };
    let frames = stream::unfold((BodyStream::new(body), state), |(mut body, mut state)| async move {
        let piece: Piece = match body.next().await? {
            Ok(frame) => match frame.into_trailers() {
                Ok(trailers) => trailers_when_durable(trailers, &mut state).await,
                Err(frame) => Ok(frame),
            },
            Err(error) => Err(error.into()),
        };
        Some((piece, (body, state)))
    });
    Body::new(StreamBody::new(frames))
}

async fn trailers_when_durable(mut trailers: HeaderMap, state: &mut State) -> Piece {
    let moment = Moment::of(&trailers, state.live.epoch);
    let landed = match (moment.commit, state.durability) {
        (Some(position), Durability::Object) => match state.mart.landed(position, state.wait).await {
            Landed::Durable => Landed::Durable,
            Landed::Late | Landed::Lost => return Err("the read's own commit is not durable".into()),
        },
        (commit, _) => {
            if commit.is_some() {
                state.mart.still_ours().await?;
            }
            state.mart.landed_now(moment.position)
        }
    };
    for name in [header::COMMIT, header::AT, header::AT_MOVING] {
        trailers.remove(name);
    }
    moment.describe(&mut trailers, landed);
    Ok(Frame::trailers(trailers))
}
