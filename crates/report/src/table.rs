//! A stage's own table on the page: what a search tried, what a bench compared.

use std::fmt::Write as _;

use crate::html::escape;

/// The first row is the head; a row that begins with nothing belongs to the one above.
pub fn table_card(out: &mut String, title: &str, rows: &[Vec<String>]) {
    let Some((head, body)) = rows.split_first() else { return };
    let _ = write!(
        out,
        "<div class=\"card full\"><h3>{}</h3><div class=\"scroll\"><table class=\"own\"><thead><tr>",
        escape(title)
    );
    for cell in head {
        let _ = write!(out, "<th>{}</th>", escape(cell));
    }
    out.push_str("</tr></thead><tbody>\n");
    for row in body {
        let more = if row.first().is_some_and(String::is_empty) { " class=\"more\"" } else { "" };
        let _ = write!(out, "<tr{more}>");
        for (i, cell) in row.iter().enumerate() {
            let tag = if i == 0 { "th" } else { "td" };
            let _ = write!(out, "<{tag}>{}</{tag}>", escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div></div>\n");
}
