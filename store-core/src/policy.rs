use crate::{
    Chunk, Error, ErrorKind, Inspect, Result,
    inspect::{Finding, Format, Inspector, Report},
};

/// Applies a store's [`Inspect`] policy to one upload, on the stream and before the commit.
#[derive(Debug)]
pub(crate) struct Inspection {
    inspector: Option<Inspector>,
    declared: Option<Format>,
    refuses: bool,
}

impl Inspection {
    pub(crate) fn new(policy: Inspect, declared: Option<Format>) -> Self {
        let inspector = (policy != Inspect::Off).then(Inspector::new);
        let refuses = policy == Inspect::Strict || declared.is_some();
        Self { inspector, declared, refuses }
    }

    /// Looks at the next bytes; a hostile image is refused as soon as it shows.
    pub(crate) fn push(&mut self, chunk: &Chunk) -> Result<()> {
        let Some(inspector) = &mut self.inspector else { return Ok(()) };
        match chunk {
            Chunk::Data(bytes) => inspector.push(bytes),
            Chunk::Zeros(len) => inspector.push_zeros(*len),
        }
        if self.refuses {
            return refuse(&inspector.peek().violations(self.declared));
        }
        Ok(())
    }

    /// The verdict on the whole image.
    pub(crate) fn finish(&mut self) -> Result<Option<Report>> {
        let Some(inspector) = self.inspector.take() else { return Ok(None) };
        let report = inspector.finish();
        if self.refuses {
            refuse(&report.violations(self.declared))?;
        }
        Ok(Some(report))
    }
}

fn refuse(violations: &[Finding]) -> Result<()> {
    if violations.is_empty() {
        return Ok(());
    }
    let reasons: Vec<String> = violations.iter().map(ToString::to_string).collect();
    Err(Error::new(ErrorKind::Rejected, format!("the image is refused: {}", reasons.join("; ")))
        .with_hint("`imagestore inspect FILE` shows what the image holds; `inspect` in the store's configuration sets the policy"))
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};

    use crate::{
        BlobId, ErrorKind, Expect, Inspect, MemoryBackend, Options, Result, Size, Store,
        inspect::{Format, sample_qcow2},
        once,
    };

    fn store(inspect: Inspect) -> Store {
        let options = Options { inspect, max_size: Some(Size(1 << 20)), ..Options::default() };
        Store::new("ram", MemoryBackend::shared(), options)
    }

    /// A qcow2 image with or without the name of a backing file.
    fn qcow2(backed: bool) -> Vec<u8> {
        let mut image = sample_qcow2();
        if backed {
            image[15] = 0x70; // Where the name is, and how long.
            image[19] = 9;
        }
        image
    }

    fn id() -> BlobId {
        "image".parse().unwrap()
    }

    #[tokio::test]
    async fn each_policy_refuses_what_it_says() {
        for (policy, declared, backed, refused) in [
            (Inspect::Off, true, true, false),
            (Inspect::Off, false, true, false),
            (Inspect::Declared, true, true, true),
            (Inspect::Declared, false, true, false),
            (Inspect::Strict, true, true, true),
            (Inspect::Strict, false, true, true),
            (Inspect::Strict, false, false, false),
        ] {
            let store = store(policy);
            let expect = || if declared { Expect::new().format(Format::Qcow2) } else { Expect::new() };
            let put = store.put(&id(), once(qcow2(backed)), expect()).await;
            let case = format!("{policy:?}, declared: {declared}, backed: {backed}: {put:?}");
            assert_eq!(
                put.as_ref().is_err_and(|error| error.kind() == ErrorKind::Rejected),
                refused,
                "{case}"
            );
            assert_eq!(put.is_ok(), !refused, "{case}");
            // The first piece tells; what comes after it is not asked for.
            let mut upload = store.upload(&"other".parse().unwrap(), expect()).await.unwrap();
            let written = upload.write(bytes::Bytes::from(qcow2(backed))).await;
            assert_eq!(written.is_err(), refused, "{case}");
            upload.abort().await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_image_of_another_format_than_declared_is_refused_unless_nobody_looks() {
        for (policy, refused) in [(Inspect::Off, false), (Inspect::Declared, true), (Inspect::Strict, true)] {
            let expect = Expect::new().format(Format::Vmdk);
            let put = store(policy).put(&id(), once(qcow2(false)), expect).await;
            assert_eq!(put.is_err_and(|error| error.kind() == ErrorKind::Rejected), refused, "{policy:?}");
        }
    }

    #[tokio::test]
    async fn a_stream_that_passes_the_greatest_size_is_cut_off() {
        let store = store(Inspect::Off);
        let mut upload = store.upload(&id(), Expect::new()).await.unwrap();
        upload.write(bytes::Bytes::from(vec![1; 1 << 20])).await.unwrap();
        let beyond = upload.write(bytes::Bytes::from_static(b"1")).await.unwrap_err();
        assert_eq!(beyond.kind(), ErrorKind::Rejected);
        upload.abort().await.unwrap();
        // This one never ends by itself.
        let endless = stream::repeat(bytes::Bytes::from_static(&[1; 4096])).map(Result::Ok);
        assert_eq!(store.put(&id(), endless, Expect::new()).await.unwrap_err().kind(), ErrorKind::Rejected);
    }

    #[tokio::test]
    async fn a_copy_keeps_format_and_virtual_size_where_nobody_looks() {
        let (from, to) = (store(Inspect::Declared), store(Inspect::Off));
        let blob = from.put(&id(), once(qcow2(false)), Expect::new()).await.unwrap();
        let copy = from.copy_to(&blob.location, &to, &id(), |_| ()).await.unwrap();
        assert_eq!((copy.meta.format, copy.meta.virtual_size), (Some(Format::Qcow2), Some(1 << 30)));
    }
}
