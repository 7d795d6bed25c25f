//! A plain page: no scripts, nothing from elsewhere.

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// A page. `title` is text, `body` is HTML.
pub fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title} - Karta</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;\
         padding:0 1rem;color-scheme:light dark}}code{{font-size:.95em}}button,.button{{font:inherit;padding:.5rem 1rem;\
         border:1px solid;border-radius:.4rem;background:none;color:inherit;text-decoration:none;cursor:pointer}}\
         button:focus-visible,a:focus-visible,input:focus-visible{{outline:2px solid;outline-offset:2px}}\
         input[type=text]{{font:inherit;padding:.4rem;width:100%;max-width:20rem}}form{{margin:1rem 0}}\
         table{{border-collapse:collapse}}td,th{{text-align:left;padding:.25rem 1rem .25rem 0}}\
         .code{{font:2rem/1.5 ui-monospace,monospace;letter-spacing:.1em}}</style><h1>{title}</h1>{body}</html>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_place() {
        let text = escape("<script>\"'&");
        assert!(!text.contains(['<', '>', '"', '\'']), "{text}");
        assert_eq!(escape("a&b"), "a&amp;b");
    }
}
