"""The description of an experiment, on its page in MLflow."""

import hashlib

import mlflow

from training.record import keys, markdown

KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"  # what MLflow shows of it
OURS = "description_digest"  # tag: the digest of the description that a command wrote last
STAGES = {
    keys.MAIN: "the whole loop; its page has the verdict",
    keys.SWEEP: "proxies on many mixtures, below it",
    keys.FIT: "the law fitted to them, and its errors; it registers a predictor",
    keys.OPTIMIZE: "the mixture with the lowest predicted loss",
    keys.VERIFY: "targets trained on that mixture and on the default, beside the prediction",
}


def describe(experiment_id: str, question: str, views: str) -> None:
    """Describe an experiment, unless a user did: the question in Markdown, how to read its runs,
    and links to views of its proxies."""
    client, tags = mlflow.MlflowClient(), mlflow.get_experiment(experiment_id).tags
    if KIND not in tags:
        client.set_experiment_tag(experiment_id, KIND, TRAINING)
    current = tags.get(keys.NOTE, "")
    if current and _digest(current) != tags.get(OURS):
        return
    stages = markdown.facts(STAGES, ("tag `stage`", "what the run holds"))
    note = markdown.fitting_parts([question, f"Proxies: {views}.", stages])
    client.set_experiment_tag(experiment_id, keys.NOTE, note)
    client.set_experiment_tag(experiment_id, OURS, _digest(note))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
