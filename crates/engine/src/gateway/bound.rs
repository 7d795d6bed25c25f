//! The most that a model call can use, proven from its request before it leaves.
//!
//! A token of text is at least one byte of the request, so a request's size bounds its input, with room for what the provider adds
//! around it. Where that does not hold (a document, an address the provider fetches, a search it makes by itself) nothing is proven by
//! size, and the provider is asked to count, or the call counts as unbounded: it may leave only where nothing is capped.

use serde_json::Value;

/// What a provider adds around a request: the instructions that come with tools, markers between messages.
const AROUND: u64 = 2_048;
/// The most tokens that one image is counted for, by any model of the list.
const IMAGE: u64 = 8_192;
/// What a model says at most in one answer, where the request does not say.
pub(super) const ANSWER: u64 = 131_072;
/// More than any cap: a call whose input can't be bounded.
const UNBOUNDED: u64 = 1 << 40;
/// What a count by the provider may be off by: it calls it an estimate.
const SLACK: u64 = 64;

/// The most that a call can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Tokens of input, all classes.
    pub input: u64,
    /// Whether a count by the provider could be less.
    pub counted: bool,
    /// Tokens of output, all answers together.
    pub output: u64,
    /// The least output that the provider takes as a limit, or that is of use.
    pub least: u64,
    /// How many answers are asked for: each has the limit to itself.
    pub answers: u64,
    /// Whether input is written to the cache for an hour, which is dearer.
    pub long_cache: bool,
}

impl Bound {
    /// For a request of this size. `unbounded` says that size proves nothing.
    pub(super) fn of(request: &Value, bytes: usize, limit: Option<u64>, least: u64, unbounded: bool) -> Self {
        let seen = look(request);
        let size = u64::try_from(bytes).unwrap_or(UNBOUNDED);
        let input = if unbounded || seen.opaque {
            UNBOUNDED
        } else {
            size.saturating_add(AROUND).saturating_add(seen.images.saturating_mul(IMAGE))
        };
        let answers = request.get("n").and_then(Value::as_u64).unwrap_or(1).clamp(1, 128);
        let output = limit.unwrap_or(ANSWER).saturating_mul(answers).min(UNBOUNDED);
        let least = least.saturating_mul(answers).min(output);
        Self { input, counted: false, output, least, answers, long_cache: seen.long_cache }
    }

    /// With the provider's own count of the input.
    #[must_use]
    pub(super) fn counted(self, input: u64) -> Self {
        let exact = input.saturating_add(input / 50).saturating_add(SLACK);
        Self { input: exact.min(self.input), counted: true, ..self }
    }

    /// The limit that one answer is given when so much output was granted.
    pub(super) const fn each(&self, granted: u64) -> u64 {
        granted / self.answers
    }
}

#[derive(Default)]
struct Look {
    images: u64,
    /// Something whose tokens its bytes don't bound.
    opaque: bool,
    long_cache: bool,
}

fn look(request: &Value) -> Look {
    let mut seen = Look::default();
    // Depth is bounded by the parser's own limit.
    let mut rest = vec![request];
    while let Some(value) = rest.pop() {
        match value {
            Value::Array(items) => rest.extend(items),
            Value::Object(fields) => {
                match fields.get("type").and_then(Value::as_str) {
                    Some("image" | "image_url" | "input_image") => seen.images += 1,
                    Some("document" | "file" | "input_file" | "input_audio" | "container_upload") => {
                        seen.opaque = true;
                    }
                    // Where something lies instead of what it is.
                    Some("url") => seen.opaque = true,
                    _ => {}
                }
                seen.opaque |= fields.contains_key("file_id") || fields.contains_key("file_url");
                seen.long_cache |= fields.get("ttl").and_then(Value::as_str) == Some("1h");
                rest.extend(fields.values());
            }
            _ => {}
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bound(request: &Value) -> Bound {
        Bound::of(request, request.to_string().len(), None, 1, false)
    }

    #[test]
    fn text_is_bounded_by_its_size_and_images_by_their_number() {
        let text = json!({"messages": [{"role": "user", "content": "four words of text"}]});
        assert_eq!(bound(&text).input, text.to_string().len() as u64 + AROUND);
        let image = json!({"content": [{"type": "image", "source": {"type": "base64", "data": "aaaa"}}]});
        assert_eq!(bound(&image).input, image.to_string().len() as u64 + AROUND + IMAGE);
        assert_eq!((bound(&text).output, bound(&text).least), (ANSWER, 1));
    }

    #[test]
    fn what_size_does_not_bound_is_unbounded_until_it_is_counted() {
        for opaque in [
            json!({"content": [{"type": "document", "source": {"type": "base64", "data": "aaaa"}}]}),
            json!({"content": [{"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}]}),
            json!({"content": [{"type": "input_image", "file_id": "file_1"}]}),
        ] {
            assert_eq!(bound(&opaque).input, UNBOUNDED, "{opaque}");
            assert_eq!(bound(&opaque).counted(1_000).input, 1_084);
        }
    }

    #[test]
    fn several_answers_share_what_is_granted() {
        let bound = Bound::of(&json!({"n": 3}), 10, Some(100), 1, false);
        assert_eq!((bound.output, bound.each(150)), (300, 50));
    }
}
