//! What a tokenizer's own template puts around a text.

use super::{Engine, Tokenizer};
use tokenizers::{Encoding, Token};

impl Tokenizer {
    /// The ids that the tokenizer's template puts before and after a text: \[CLS\] and \[SEP\] of BERT, `<s>`
    /// and nothing of Llama, nothing at all of GPT-2. Models of such a tokenizer were trained on text in this
    /// frame; [`Tokenizer::encode`] leaves it out. Both are empty for the kinds *Bpe* and *Bytes*.
    pub fn frame(&self) -> (Vec<u32>, Vec<u32>) {
        let Engine::Library(library) = &self.engine else {
            return (Vec::new(), Vec::new());
        };
        // The template does not look at the text, and a token of ours, in the vocabulary or not, stands where
        // any text would: even a tokenizer that cannot encode a given letter shows its frame.
        let text = Encoding::from_tokens(vec![Token::new(0, "a".into(), (0, 1))], 0);
        let framed = library.inner.post_process(text, None, true).unwrap_or_default();
        let (ids, mask) = (framed.get_ids(), framed.get_special_tokens_mask());
        let before: Vec<u32> =
            ids.iter().zip(mask).take_while(|(_, special)| **special == 1).map(|(id, _)| *id).collect();
        let after = ids.iter().skip(before.len() + 1).copied().collect();
        (before, after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TokenizerKind;
    use crate::data::tokenizer::Library;
    use serde_json::{Value, json};

    fn with(post_processor: Value) -> Tokenizer {
        let words = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
            "post_processor": post_processor,
            "model": {"type": "WordLevel", "vocab": {"<s>": 1, "</s>": 2, "a": 3, "?": 4}, "unk_token": "?"},
        });
        Tokenizer::from_library(Library::parse(words.to_string(), TokenizerKind::File).unwrap())
    }

    fn template(single: &[&str]) -> Value {
        let piece = |name: &&str| match *name {
            "$" => json!({"Sequence": {"id": "A", "type_id": 0}}),
            token => json!({"SpecialToken": {"id": token, "type_id": 0}}),
        };
        let single: Vec<Value> = single.iter().map(piece).collect();
        let pair: Vec<Value> =
            single.iter().cloned().chain([json!({"Sequence": {"id": "B", "type_id": 1}})]).collect();
        json!({
            "type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
            },
        })
    }

    #[test]
    fn the_frame_is_what_the_library_puts_around_texts() {
        let sequence = json!({"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            template(&["<s>", "$"]),
        ]});
        let cases = [
            (Value::Null, vec![], vec![]),
            (template(&["$"]), vec![], vec![]),
            (template(&["<s>", "$"]), vec![1], vec![]),
            (template(&["$", "</s>"]), vec![], vec![2]),
            (template(&["<s>", "<s>", "$", "</s>"]), vec![1, 1], vec![2]),
            (json!({"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}), vec![1], vec![2]),
            (
                json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1],
                       "trim_offsets": true, "add_prefix_space": false}),
                vec![1],
                vec![2],
            ),
            (sequence, vec![1], vec![]),
        ];
        for (processor, before, after) in cases {
            let tokenizer = with(processor.clone());
            assert_eq!(tokenizer.frame(), (before.clone(), after.clone()), "{processor}");
            let Engine::Library(library) = &tokenizer.engine else { unreachable!() };
            for (text, ids) in [("", vec![]), ("a", vec![3]), ("a b", vec![3, 4])] {
                let framed = library.inner.encode(text, true).unwrap();
                let expected = [before.clone(), ids, after.clone()].concat();
                assert_eq!(framed.get_ids(), expected, "{processor} {text:?}");
            }
        }
    }

    #[test]
    fn our_own_kinds_have_none() {
        let trained = Tokenizer::train_bpe([Ok("a b a b")].into_iter(), 258, &mut |_| {}).unwrap();
        for tokenizer in [Tokenizer::bytes(), trained] {
            assert_eq!(tokenizer.frame(), (vec![], vec![]));
        }
    }
}
