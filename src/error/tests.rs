//! What the errors say.

use super::*;

/// Each says what was wrong and what to do, and "again" only where calling again may end otherwise.
#[test]
fn sentences_say_what_to_do() {
    let (no, text) = (Executed::No, || "x".to_owned());
    let errors: [(BusError, &str, bool); 14] = [
        (CallError::OwnerDied { executed: no }, "died", true),
        (CallError::DeadlineExceeded { executed: no }, "deadline", true),
        (CallError::Overloaded { executed: no }, "let some end", true),
        (CallError::Unpublished { executed: no }, "withdrawn", true),
        (CallError::NoMemory { executed: no }, "BusBuilder::memory", true),
        (CallError::TooLarge { limit: 1, size: 2, executed: no }, "Limits::body_bytes", false),
        (CallError::BadRequest { reason: text(), executed: no }, "were refused: x", false),
        (CallError::UnknownMethod { method: text(), executed: no }, "no method `x`", false),
        (CallError::SchemaMismatch { method: text(), ours: 1, theirs: 2, executed: no }, "build both", false),
        (CallError::MethodPanicked { message: text(), executed: no }, "publish it anew", false),
        (CallError::WouldDeadlock { executed: no }, "more workers", false),
        (CallError::NotFound { name: text(), executed: no }, "Absent::Wait", false),
        (CallError::PermissionDenied { executed: no }, "rules", false),
        (CallError::ForkedHandle { executed: no }, "open the bus again", false),
    ];
    for (error, advice, is_safe_again) in errors {
        let sentence = error.to_string();
        assert!(sentence.contains(advice), "{sentence}");
        assert!(sentence.contains("the method did not run"), "{sentence}");
        assert_eq!(sentence.contains("calling again is safe"), is_safe_again, "{sentence}");
    }
}

#[test]
fn a_refused_name_is_told() {
    let (name, reason) = ("a/b".to_owned(), "why");
    let publishing = PublishError::NameInvalid { name: name.clone(), reason };
    assert_eq!(publishing.to_string(), "the name \"a/b\" is not valid: why");
    assert_eq!(ConnectError::NameInvalid { name, reason }.to_string(), publishing.to_string());
}

#[test]
fn a_publisher_without_a_number_is_not_called_process_0() {
    assert!(!PublishError::AlreadyPublished { pid: 0 }.to_string().contains("process 0"));
    assert!(PublishError::AlreadyPublished { pid: 7 }.to_string().starts_with("process 7 "));
}

#[test]
fn nobody_who_lives_is_called_dead() {
    let sentence = BusError::Disconnected { executed: Executed::Unknown }.to_string();
    assert!(sentence.contains("lives") && !sentence.contains("died"), "{sentence}");
    assert!(sentence.ends_with("the method may have run"), "{sentence}");
}
