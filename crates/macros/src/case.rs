//! serde's `rename_all`: how a rule changes the names of fields and variants.

use proc_macro2::Span;

/// A rule of `rename_all`.
#[derive(Clone, Copy)]
pub(crate) enum Case {
    Lower,
    Upper,
    Pascal,
    Camel,
    Snake,
    ScreamingSnake,
    Kebab,
    ScreamingKebab,
}

impl Case {
    pub(crate) fn parse(rule: &str, span: Span) -> syn::Result<Case> {
        Ok(match rule {
            "lowercase" => Case::Lower,
            "UPPERCASE" => Case::Upper,
            "PascalCase" => Case::Pascal,
            "camelCase" => Case::Camel,
            "snake_case" => Case::Snake,
            "SCREAMING_SNAKE_CASE" => Case::ScreamingSnake,
            "kebab-case" => Case::Kebab,
            "SCREAMING-KEBAB-CASE" => Case::ScreamingKebab,
            _ => return Err(syn::Error::new(span, "serde has no such renaming rule")),
        })
    }

    /// The name of a variant, which is written in PascalCase.
    pub(crate) fn of_variant(self, name: &str) -> String {
        match self {
            Case::Pascal => name.to_owned(),
            Case::Lower => name.to_ascii_lowercase(),
            Case::Upper => name.to_ascii_uppercase(),
            Case::Camel => lower_first(name),
            Case::Snake => snake(name),
            Case::ScreamingSnake => snake(name).to_ascii_uppercase(),
            Case::Kebab => snake(name).replace('_', "-"),
            Case::ScreamingKebab => snake(name).to_ascii_uppercase().replace('_', "-"),
        }
    }

    /// The name of a field, which is written in snake_case.
    pub(crate) fn of_field(self, name: &str) -> String {
        match self {
            Case::Lower | Case::Snake => name.to_owned(),
            Case::Upper | Case::ScreamingSnake => name.to_ascii_uppercase(),
            Case::Pascal => pascal(name),
            Case::Camel => lower_first(&pascal(name)),
            Case::Kebab => name.replace('_', "-"),
            Case::ScreamingKebab => name.to_ascii_uppercase().replace('_', "-"),
        }
    }
}

fn lower_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| format!("{}{}", first.to_ascii_lowercase(), chars.as_str()))
}

fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for (index, letter) in name.char_indices() {
        if index > 0 && letter.is_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

fn pascal(name: &str) -> String {
    name.split('_')
        .map(|word| {
            let mut chars = word.chars();
            chars
                .next()
                .map_or_else(String::new, |first| format!("{}{}", first.to_ascii_uppercase(), chars.as_str()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_change_as_serde_changes_them() {
        let rules: [(&str, &str, &str); 8] = [
            ("lowercase", "outcome_two", "verytasty"),
            ("UPPERCASE", "OUTCOME_TWO", "VERYTASTY"),
            ("PascalCase", "OutcomeTwo", "VeryTasty"),
            ("camelCase", "outcomeTwo", "veryTasty"),
            ("snake_case", "outcome_two", "very_tasty"),
            ("SCREAMING_SNAKE_CASE", "OUTCOME_TWO", "VERY_TASTY"),
            ("kebab-case", "outcome-two", "very-tasty"),
            ("SCREAMING-KEBAB-CASE", "OUTCOME-TWO", "VERY-TASTY"),
        ];
        for (rule, field, variant) in rules {
            let case = Case::parse(rule, Span::call_site()).unwrap();
            assert_eq!(case.of_field("outcome_two"), field);
            assert_eq!(case.of_variant("VeryTasty"), variant);
        }
        assert!(Case::parse("sPoNgEcAsE", Span::call_site()).is_err());
    }
}
