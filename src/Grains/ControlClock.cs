namespace Megatron.Grains;

/// <summary>The clock of the control plane; a type of its own, so that tests can move it without stopping Orleans' own.</summary>
/// <param name="Time">The clock.</param>
public sealed record ControlClock(TimeProvider Time);
