use percent_encoding::percent_decode_str;
use store_core::{BlobId, Error, ErrorKind, Location, Result};

/// Which objects of which account are this store's.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The account's name in `swift+config://` locations.
    pub(crate) reference: String,
    /// Scheme, host, port and path of the account, as `http://swift:8080/v1/AUTH_images`.
    pub(crate) storage: String,
    /// Host, port and path of the identity service, without a slash at its end.
    pub(crate) auth: String,
    /// `project:user`, where they are known by name.
    pub(crate) user: Option<String>,
    pub(crate) container: String,
    pub(crate) segments: Option<String>,
    pub(crate) prefix: String,
    pub(crate) seed: usize,
    pub(crate) multi_tenant: bool,
}

/// An object that a location leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) container: String,
    /// Without the prefix.
    pub(crate) name: String,
}

impl Place {
    /// Whether there are several containers.
    pub(crate) fn many(&self) -> bool {
        self.multi_tenant || self.seed > 0
    }

    /// The container of a blob, as Glance names it.
    pub(crate) fn container(&self, id: &str) -> String {
        if self.multi_tenant {
            return format!("{}_{id}", self.container);
        }
        if self.seed == 0 {
            return self.container.clone();
        }
        // Dashes are kept, and do not count.
        let id = id.to_lowercase();
        let dashes = id.bytes().take(self.seed).filter(|byte| *byte == b'-').count();
        format!("{}_{}", self.container, &id[..id.len().min(self.seed + dashes)])
    }

    /// The container of the segments of what is in `container`.
    pub(crate) fn segments(&self, container: &str) -> String {
        match &self.segments {
            Some(segments) => segments.clone(),
            // No id has a plus in it, other than an underscore.
            None if self.multi_tenant => format!("{container}+segments"),
            None => format!("{container}_segments"),
        }
    }

    /// Whether a container of the account is one of blobs.
    pub(crate) fn holds_blobs(&self, container: &str) -> bool {
        if !self.many() {
            return container == self.container;
        }
        let rest = container.strip_prefix(&self.container).and_then(|rest| rest.strip_prefix('_'));
        rest.is_some_and(|rest| !rest.is_empty() && !rest.ends_with("+segments"))
            && (self.multi_tenant || !container.ends_with("_segments"))
    }

    /// The container of the blobs whose segments are in `segments`, which may not be there yet.
    pub(crate) fn blobs_of<'a>(&self, segments: &'a str) -> Option<&'a str> {
        let suffix = if self.multi_tenant { "+segments" } else { "_segments" };
        segments.strip_suffix(suffix).filter(|container| self.holds_blobs(container))
    }

    /// The object's name of a blob.
    pub(crate) fn object(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The id of the blob that `object` is, if it is one.
    pub(crate) fn id(&self, object: &str) -> Option<BlobId> {
        object.strip_prefix(&self.prefix)?.parse().ok()
    }

    /// What the names of all that belongs to the upload `token` of `name` start with.
    ///
    /// Where `segment_container` is set, other stores may have theirs there too, even of a blob with that name: the
    /// container of the blob is in the names.
    pub(crate) fn staged(&self, name: &str, token: &str) -> String {
        match &self.segments {
            Some(_) => format!("{}{name}/{token}-{}/", self.prefix, self.container),
            None => self.staged_before(name, token),
        }
    }

    /// The same of a blob that was written before the container was in them.
    fn staged_before(&self, name: &str, token: &str) -> String {
        format!("{}{name}/{token}/", self.prefix)
    }

    /// All that the names of what belongs to a blob may start with.
    pub(crate) fn all_staged(&self, name: &str, token: &str) -> Vec<String> {
        let before = self.segments.is_some().then(|| self.staged_before(name, token));
        std::iter::once(self.staged(name, token)).chain(before).collect()
    }

    /// Whether that is a folder of what belongs to a blob, wherever segments went when it was written.
    pub(crate) fn is_staged(&self, folder: &str, name: &str, token: &str) -> bool {
        let rest = folder.strip_prefix(&format!("{}{name}/{token}", self.prefix));
        rest.is_some_and(|rest| rest == "/" || rest == format!("-{}/", self.container))
    }

    /// The blob and the upload that a staged object belongs to, if it surely is one of this store's.
    pub(crate) fn owner<'a>(&self, staged: &'a str) -> Option<(&'a str, &'a str)> {
        let rest = staged.strip_prefix(&self.prefix)?;
        let mut parts = rest.split('/');
        let (name, token, _) = (parts.next()?, parts.next()?, parts.next()?);
        let token = match &self.segments {
            Some(_) => token.split_once('-').filter(|(_, of)| *of == self.container)?.0,
            None => token,
        };
        let fits = parts.next().is_none()
            && token.len() == 32
            && token.bytes().all(|b| b.is_ascii_hexdigit())
            && name.parse::<BlobId>().is_ok();
        fits.then_some((name, token))
    }

    /// The scheme of the locations that this store returns.
    pub(crate) fn scheme(&self) -> &'static str {
        match (self.multi_tenant, self.storage.starts_with("https:")) {
            (false, _) => "swift+config",
            (true, true) => "swift+https",
            (true, false) => "swift+http",
        }
    }

    /// The location of a blob, as Glance would write it without a secret.
    pub(crate) fn location(&self, container: &str, name: &str) -> Result<Location> {
        let object = Location::encode_segment(&self.object(name));
        let container = Location::encode_segment(container);
        match self.multi_tenant {
            false => format!("swift+config://{}/{container}/{object}", self.reference).parse(),
            true => format!("swift+{}/{container}/{object}", self.storage).parse(),
        }
    }

    /// The blob that `at` names. Credentials in it are not used: the store has its own.
    ///
    /// Any other account, container, prefix or server is refused: a location is data that others may have written.
    pub(crate) fn find(&self, at: &Location) -> Result<Found> {
        let outside = || {
            let example = self.location(&self.container, "ID");
            let example = example.map(|at| at.to_string()).unwrap_or_default();
            Error::new(ErrorKind::Invalid, format!("{at} is not in this store"))
                .with_hint(format!("its locations are like {example}"))
        };
        let rest = at.rest().strip_prefix("//").ok_or_else(outside)?;
        if rest.contains("://") || rest.contains(['?', '#']) {
            return Err(outside());
        }
        let (rest, object) = rest.rsplit_once('/').ok_or_else(outside)?;
        let (account, container) = rest.rsplit_once('/').ok_or_else(outside)?;
        if !self.is_account(at.scheme(), account) {
            return Err(outside());
        }
        let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(String::from);
        let container = decoded(container).map_err(|_| outside())?;
        let object = decoded(object).map_err(|_| outside())?;
        let name = object.strip_prefix(&self.prefix).ok_or_else(outside)?.to_owned();
        // As others wrote them, names need not be ids; but they lie flat.
        let fits = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
        let fits = fits && name.len() <= 512 && !name.chars().any(char::is_control);
        if !fits || !self.holds_blobs(&container) || container.contains('/') {
            return Err(outside());
        }
        Ok(Found { container, name })
    }

    /// Whether that is what a location of this store's account has in front of the container.
    fn is_account(&self, scheme: &str, text: &str) -> bool {
        if scheme == "swift+config" {
            return text == self.reference;
        }
        let tls = match scheme {
            "swift" | "swift+https" => "https://",
            "swift+http" => "http://",
            _ => return false,
        };
        match text.rsplit_once('@') {
            // Multi-tenant: an address of the account itself.
            None => format!("{tls}{text}") == self.storage,
            // Single-tenant: that of the identity service, with the credentials to use there.
            Some((credentials, address)) => {
                let user = credentials.rsplit_once(':').map_or(credentials, |(user, _)| user);
                let Ok(user) = percent_decode_str(user).decode_utf8() else { return false };
                let ours = self.user.as_ref().is_none_or(|own| *own == user);
                let address = address.trim_end_matches('/');
                ours && (format!("{tls}{address}") == self.auth || format!("{tls}{address}/v3") == self.auth)
            }
        }
    }
}

/// Lets a text be read as a location of every kind of store; what is found has a location that leads to it.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse_all(text: &str) {
    let Ok(at) = text.parse::<Location>() else { return };
    let (mut spread, mut tenant) = (place(), place());
    (spread.seed, spread.prefix) = (2, "a/b".to_owned());
    (tenant.multi_tenant, tenant.container) = (true, "g".to_owned());
    for place in [place(), spread, tenant] {
        let Ok(found) = place.find(&at) else { continue };
        let again = place.location(&found.container, &found.name);
        assert!(again.is_ok_and(|again| place.find(&again).is_ok_and(|again| again == found)), "{at}");
        let _ = (place.blobs_of(&found.container), place.owner(&found.name));
    }
}

#[cfg(any(test, fuzzing))]
fn place() -> Place {
    Place {
        reference: "ref1".into(),
        storage: "http://swift:8080/v1/AUTH_images".into(),
        auth: "http://keystone:5000/v3".into(),
        user: Some("images:glance".into()),
        container: "glance".into(),
        segments: None,
        prefix: String::new(),
        seed: 0,
        multi_tenant: false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn glances_locations_lead_to_the_same_blob() {
        let found = Found { container: "glance".into(), name: "a".into() };
        assert_eq!(place().location("glance", "a").unwrap().to_string(), "swift+config://ref1/glance/a");
        for text in [
            "swift+config://ref1/glance/a",
            "swift+http://images%3Aglance:hunter2@keystone:5000/v3/glance/a",
            "swift+http://images:glance:hunter2@keystone:5000/v3/glance/a",
            "swift+http://images%3Aglance:hunter2@keystone:5000/glance/a",
            "swift+http://swift:8080/v1/AUTH_images/glance/a",
        ] {
            assert_eq!(place().find(&text.parse().unwrap()).unwrap(), found, "{text}");
        }
        let mut tenant = place();
        (tenant.multi_tenant, tenant.storage) = (true, "https://swift/v1/AUTH_a".into());
        let at = tenant.location("glance_a", "a").unwrap();
        assert_eq!(at.to_string(), "swift+https://swift/v1/AUTH_a/glance_a/a");
        assert_eq!(tenant.find(&at).unwrap().container, "glance_a");
        assert!(tenant.find(&"swift://swift/v1/AUTH_a/glance_a/a".parse().unwrap()).is_ok());
    }

    #[test]
    fn nothing_else_is_found() {
        for bad in [
            "swift+config://ref2/glance/a",
            "swift+config://user:hunter2@ref1/glance/a",
            "swift+config://ref1/other/a",
            "swift+config://ref1/glance_segments/a",
            "swift+config://ref1/x/glance/a",
            "swift+config://ref1/glance/",
            "swift+config://ref1/glance/.a",
            "swift+config://ref1/glance/a%2Fb",
            "swift+config://ref1/glance/a%00",
            "swift+config://ref1/glance/a/..",
            "swift+config://ref1/glance",
            "swift+https://images%3Aglance:hunter2@keystone:5000/v3/glance/a",
            "swift+http://other%3Aglance:hunter2@keystone:5000/v3/glance/a",
            "swift+http://images%3Aglance:hunter2@evil/v3/glance/a",
            "swift+http://swift:8080/v1/AUTH_other/glance/a",
            "swift+http://swift+http://x/glance/a",
            "swift+config:ref1/glance/a",
        ] {
            let error = place().find(&bad.parse().unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn containers_are_named_as_glance_names_them() {
        let mut place = place();
        for (seed, id, expected) in [
            (3, "0123-4567", "glance_012"),
            (4, "0123-4567", "glance_0123"),
            (5, "0123-4567", "glance_0123-4"),
            (6, "01-3-4567", "glance_01-3-456"),
            (32, "AB", "glance_ab"),
        ] {
            place.seed = seed;
            assert_eq!(place.container(id), expected);
            assert!(place.holds_blobs(expected) && !place.holds_blobs(&place.segments(expected)));
            assert_eq!(place.blobs_of(&place.segments(expected)), Some(expected));
            assert_eq!(place.blobs_of(expected), None);
        }
        (place.seed, place.multi_tenant) = (0, true);
        assert_eq!(place.segments(&place.container("a_segments")), "glance_a_segments+segments");
        assert!(place.holds_blobs("glance_a_segments") && !place.holds_blobs("glance_a+segments"));
        assert!(!place.holds_blobs("glance") && !place.holds_blobs("other_a"));
    }

    #[test]
    fn what_is_staged_leads_back_to_its_blob() {
        let mut place = place();
        place.prefix = "a/b/".into();
        let token = "0123456789abcdef0123456789abcdef";
        let staged = format!("{}00000001", place.staged("x.y", token));
        assert_eq!(place.owner(&staged), Some(("x.y", token)));
        for other in ["a/b/x", "a/b/x/y/z", "x/0123456789abcdef0123456789abcdef/1", "a/b/x/slo/17/1/1"] {
            assert_eq!(place.owner(other), None, "{other}");
        }
    }

    #[test]
    fn what_stores_stage_in_one_container_is_told_apart() {
        let token = "0123456789abcdef0123456789abcdef";
        let shared = |container: &str, prefix: &str| {
            let (container, prefix) = (container.to_owned(), prefix.to_owned());
            Place { container, prefix, segments: Some("s".to_owned()), ..place() }
        };
        // The last one's container of segments has that name by itself.
        let own = Place { container: "s".to_owned(), prefix: "a-b/".to_owned(), ..place() };
        let places = [shared("images", ""), shared("a-b", ""), shared("b", "x/"), shared("b", "a-b/"), own];
        for (number, place) in places.iter().enumerate() {
            let staged = format!("{}00000000", place.staged("x", token));
            for (other, at) in places.iter().enumerate() {
                let owner = (number == other).then_some(("x", token));
                assert_eq!(at.owner(&staged), owner, "{staged} {at:?}");
            }
        }
        // Before, names did not tell whose they are.
        let before = format!("x/{token}/");
        assert_eq!(places[0].owner(&format!("{before}00000000")), None);
        assert_eq!(places[0].all_staged("x", token), [format!("x/{token}-images/"), before.clone()]);
        assert_eq!(place().all_staged("x", token), [before]);
    }

    proptest! {
        #[test]
        fn locations_lead_back(prefix in "([a-z %+@:]{1,5}/){0,2}", id in "[A-Za-z0-9_][A-Za-z0-9._-]{0,40}") {
            let mut place = place();
            place.prefix = prefix;
            let at = place.location("glance", &id).unwrap();
            prop_assert_eq!(place.find(&at).unwrap().name, id);
        }

        #[test]
        fn what_is_found_leads_back(
            text in "(swift|swift\\+https?|swift\\+config):\\PC{0,60}",
            start in "swift\\+(config://ref1|http://swift:8080/v1/AUTH_images|http://images:glance:k@keystone:5000/v3)",
            container in "(glance|glance_ab|g_a|g_a%2Bsegments)",
            object in "[a-z%0-9A-F+_.]{0,8}",
        ) {
            parse_all(&text);
            parse_all(&format!("{start}/{container}/{object}"));
        }
    }
}
