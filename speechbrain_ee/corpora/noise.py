"""Noise, and speech in it at a wanted signal-to-noise ratio.

Authors
 * SpeechBrain-EE contributors 2026
"""

import numpy as np

# Power falls as 1 / frequency to this power.
COLORS = {"white": 0, "pink": 1, "brown": 2}
LOWEST_FREQUENCY = 50  # Hz; what lies below is not heard, but would count
FRAMES_PER_SECOND = 50
ACTIVE_RANGE = 30  # dB


def active_level(wave, sample_rate=16000):
    """How loud speech is while somebody speaks.

    That is the root mean square over those frames of 20 ms that are at most
    30 dB below the loudest one: pauses do not count.

    Arguments
    ---------
    wave : numpy.ndarray
        Speech of shape (samples,), 20 ms at least.
    sample_rate : int
        Its sample rate in Hz.

    Returns
    -------
    float
        The level, on the scale of the samples.

    Raises
    ------
    ValueError
        If the wave is silent or too short.

    Example
    -------
    >>> speech = np.concatenate([np.full(8000, 0.5), np.zeros(8000)])
    >>> float(active_level(speech))
    0.5
    """
    size = sample_rate // FRAMES_PER_SECOND
    frames = wave[: len(wave) // size * size].reshape(-1, size)
    power = (frames.astype(float) ** 2).mean(1)
    if not power.any():
        raise ValueError(
            f"There is no speech in these {len(wave)} samples: they are silent "
            f"or fewer than {size}."
        )
    active = power >= power.max() * 10 ** (-ACTIVE_RANGE / 10)
    return np.sqrt(power[active].mean())


def plain_level(wave, sample_rate=16000):
    """How loud a wave is, pauses included: its root mean square.

    Arguments
    ---------
    wave : numpy.ndarray
        Of shape (samples,).
    sample_rate : int
        Of no account; as ``active_level`` has it.

    Returns
    -------
    float
        The level, on the scale of the samples.

    Raises
    ------
    ValueError
        If the wave is silent or empty.

    Example
    -------
    >>> float(plain_level(np.array([0.6, 0.0, 0.0, -0.6])).round(4))
    0.4243
    """
    if not np.any(wave):
        raise ValueError(f"These {len(wave)} samples are silent.")
    return np.sqrt((wave.astype(float) ** 2).mean())


# What a signal-to-noise ratio may take for the level of the speech.
LEVELS = {"active": active_level, "plain": plain_level}


def colored_noise(color, samples, rng, sample_rate=16000):
    """Draws steady noise: white, pink or brown, from 50 Hz upwards.

    Arguments
    ---------
    color : str
        One of ``COLORS``. Pink noise loses 3 dB per octave, brown noise 6 dB.
    samples : int
        How much of it.
    rng : numpy.random.Generator
        The source of randomness.
    sample_rate : int
        Sample rate in Hz.

    Returns
    -------
    numpy.ndarray
        The noise, of shape (samples,) and of any level.

    Example
    -------
    >>> noise = colored_noise("pink", 16000, np.random.default_rng(0))
    >>> noise.shape
    (16000,)
    """
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequencies = np.fft.rfftfreq(samples, 1 / sample_rate)
    heard = frequencies >= LOWEST_FREQUENCY
    spectrum[~heard] = 0
    spectrum[heard] *= frequencies[heard] ** (-COLORS[color] / 2)
    return np.fft.irfft(spectrum, samples)


def babble(talkers, samples, rng, sample_rate=16000):
    """Lets several people talk at once, all equally loud.

    Arguments
    ---------
    talkers : list of numpy.ndarray
        What each of them says. It is repeated to the wanted length, from a
        random place on.
    samples : int
        How long they talk.
    rng : numpy.random.Generator
        The source of randomness.
    sample_rate : int
        Sample rate in Hz.

    Returns
    -------
    numpy.ndarray
        The noise, of shape (samples,) and of any level.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> talkers = [rng.standard_normal(8000) for _ in range(4)]
    >>> babble(talkers, 16000, rng).shape
    (16000,)
    """
    total = np.zeros(samples)
    for wave in talkers:
        start = rng.integers(len(wave))
        repeated = np.resize(np.roll(wave, -start), samples)
        total += repeated / active_level(wave, sample_rate)
    return total


def mix(speech, noise, snr, sample_rate=16000, level="active"):
    """Adds noise to speech.

    Arguments
    ---------
    speech : numpy.ndarray
        Speech of shape (samples,).
    noise : numpy.ndarray
        Noise of the same shape; its level does not matter.
    snr : float
        Signal-to-noise ratio in dB: the level of the speech over the root mean
        square of the noise.
    sample_rate : int
        Sample rate of both in Hz.
    level : str
        One of ``LEVELS``: of the speech without its pauses, or with them.

    Returns
    -------
    numpy.ndarray
        The sum, which may go beyond 1.

    Example
    -------
    >>> speech, noise = np.full(3200, 0.5), np.tile([1.0, -1.0], 1600)
    >>> mix(speech, noise, 20)[:2].round(3).tolist()
    [0.55, 0.45]
    """
    wanted = LEVELS[level](speech, sample_rate) * 10 ** (-snr / 20)
    return speech + noise * wanted / np.sqrt((noise**2).mean())


def soften(wave, peak=0.95):
    """Scales a wave down where it is too loud, so that nothing is clipped.

    Arguments
    ---------
    wave : numpy.ndarray
        The wave, not empty.
    peak : float
        The largest value that it may have.

    Returns
    -------
    numpy.ndarray
        The wave, as it is if it is soft enough.

    Example
    -------
    >>> soften(np.array([0.5, -1.9])).tolist()
    [0.25, -0.95]
    """
    loudest = np.abs(wave).max()
    return wave if loudest <= peak else wave * (peak / loudest)
