"""What each study is: for its report, and for the page of all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """
    Attributes:
        title: a line.
        source: the paper.
        question: what is asked, in a sentence or two.
        figure: name of the one that shows the signature; "" or one that is not there: the first by name.
    """

    title: str
    source: str
    question: str
    figure: str = ""


ABOUT: dict[str, About] = {
    "bn-estimators": About(
        "Batch normalisation's estimators and the kernel",
        "Rethinking Adversarial Training with Neural Tangent Kernel, arXiv 2312.02236",
        "What do running statistics, statistics of the batch and normalised inputs, in training, in the attack and in "
        "the kernel, change of accuracy and of the neural tangent kernel?",
        "measures",
    ),
    "noise-scale": About(
        "Learning rate / batch size and the robust gap",
        "DEAT: positive-negative momentum in adversarial training",
        "Does more gradient noise, a larger learning rate over batch size, make the gap between robust training and "
        "test accuracy smaller?",
        "noise_scale",
    ),
    "ntk-trace": About(
        "The neural tangent kernel along training",
        "Rethinking Adversarial Training with Neural Tangent Kernel, arXiv 2312.02236; Tsilivis & Kempe (NeurIPS 2022)",
        "How do the kernels of clean and of attacked images turn during standard and adversarial training, and when do "
        "they settle?",
        "trace",
    ),
    "criticality": About(
        "Which layers a network needs",
        "How Do Training Methods Influence the Utilization of Vision Models?, arXiv 2410.14470",
        "How far do the predictions of a trained network move when one of its layers is put back to a random "
        "initialisation, and does adversarial training make more of the layers matter?",
        "stages",
    ),
    "induced": About(
        "Distributions that adversarial training induces",
        "On robust overfitting: adversarial training induced distribution matters, arXiv 2311.16526",
        "Training and test images are perturbed by each checkpoint of an adversarial training, and a fresh network is "
        "trained on them as they are: does it generalise worse the later the checkpoint?",
        "ide",
    ),
    "co-features": About(
        "Catastrophic overfitting by injected features",
        "Catastrophic overfitting can be induced with discriminative non-robust features, arXiv 2206.08242",
        "A feature that tells the classes apart but is not robust is added to every image: does training by one-step "
        "attacks collapse at a radius at which it does not without?",
        "collapse",
    ),
    "memorization": About(
        "Adversarial training on random labels",
        "Exploring Memorization in Adversarial Training, arXiv 2106.01606",
        "Can PGD adversarial training and TRADES fit labels that are random, how large and how stable are their "
        "gradients, and does a measure of complexity rank the robust gap?",
        "convergence",
    ),
}
