//! Doors for fuzzing, which only the compiler of the fuzz targets sees.

use store_core::Location;

use crate::{
    client,
    location::{Place, Target, staged_id},
};

/// A location that names an image names the same one when it is written anew.
pub fn locations(text: &str) {
    let _ = staged_id(text);
    let Ok(at) = text.parse::<Location>() else { return };
    // Most texts name another cluster: the one that they name is ours.
    let mut parts = at.rest().trim_start_matches('/').split('/').map(decoded);
    let (fsid, pool) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (pool, namespace) = pool.split_once('/').unwrap_or((&pool, ""));
    let place =
        Place { fsid, pool: pool.to_owned(), namespace: namespace.to_owned(), snapshot: "snap".to_owned() };
    let Ok(Target { image, snapshot }) = place.find(&at) else { return };
    let place = Place { snapshot: snapshot.unwrap_or(place.snapshot.clone()), ..place };
    // Written anew it may be too long: more of it is encoded.
    let Ok(again) = place.location(&image) else { return };
    let found = place.find(&again).expect("what was written can be found");
    assert_eq!(found, Target { image, snapshot: Some(place.snapshot) });
}

fn decoded(part: &str) -> String {
    percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned()
}

/// What OSDs and monitors answer.
pub fn answers(input: &[u8]) {
    client::parse_any(input);
}
