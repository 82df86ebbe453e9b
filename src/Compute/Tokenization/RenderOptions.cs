namespace Megatron.Compute.Tokenization;

/// <summary>Settings of rendering for training.</summary>
/// <param name="System">System prompt of the setting <c>system</c>; null when not given, empty removes the system block.</param>
/// <param name="LossScale">Which tokens are learned.</param>
public sealed record RenderOptions(string? System, LossScale LossScale);
