//! Entity tags (RFC 9110 section 8.8.3) and `If-None-Match`, which lists the tags that a client
//! has.

/// Returns whether `If-None-Match` contains this entity tag, using weak comparison (P81, RFC 9110
/// section 13.1.2).
///
/// `*` matches every tag. A malformed list matches none, so that the client receives the full
/// answer.
#[must_use]
pub fn matches_tag(if_none_match: &str, tag: &str) -> bool {
    let mut rest = if_none_match.trim_matches(OWS);
    if rest == "*" {
        return true;
    }
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    let mut is_listed = false;
    loop {
        // A list may have empty elements (section 5.6.1).
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return is_listed;
        }
        let opaque = rest.strip_prefix("W/").unwrap_or(rest);
        // A tag may contain a comma, but no quote.
        let Some(close) = opaque
            .strip_prefix('"')
            .and_then(|content| content.find('"'))
        else {
            return false;
        };
        let (listed, after) = opaque.split_at(close + 2);
        is_listed |= listed == tag;
        rest = after.trim_start_matches(OWS);
        if !(rest.is_empty() || rest.starts_with(',')) {
            return false;
        }
    }
}

const OWS: [char; 2] = [' ', '\t'];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// P81.
    #[test]
    fn entity_tags() {
        for (list, is_match) in [
            ("\"7\"", true),
            ("W/\"7\"", true),
            ("\"6\", \"7\"", true),
            ("\"6\",W/\"7\" ,\"8\"", true),
            (" \t\"7\"\t ", true),
            (",, \"7\",", true),
            ("\"\", \"7\"", true),
            ("\"a,b\", \"7\"", true),
            ("*", true),
            (" * ", true),
            ("\"77\"", false),
            ("7", false),
            ("w/\"7\"", false),
            ("W/ \"7\"", false),
            ("", false),
            (",", false),
            // A single tag that contains ours.
            ("\"6,\"7\"", false),
            ("\"6, 7\"", false),
            // Malformed.
            ("\"7", false),
            ("\"7\"\"8\"", false),
            ("\"7\" \"8\"", false),
            ("\"7\", 8", false),
            ("\"7\", *", false),
            ("*, \"7\"", false),
        ] {
            for tag in ["\"7\"", "W/\"7\""] {
                assert_eq!(matches_tag(list, tag), is_match, "{list} {tag}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_lists(list in any::<String>(), tag in any::<String>()) {
            let _ = matches_tag(&list, &tag);
        }

        #[test]
        fn a_list_matches_each_of_its_tags(
            tags in prop::collection::vec("(W/)?\"[!#-~]{0,3}\"", 0..5),
            sought in "\"[!#-~]{0,3}\"",
        ) {
            let expected = tags.iter().any(|tag| tag.trim_start_matches("W/") == sought);
            prop_assert_eq!(matches_tag(&tags.join(" ,"), &sought), expected);
        }
    }
}
