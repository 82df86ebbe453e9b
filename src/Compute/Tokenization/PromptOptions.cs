namespace Megatron.Compute.Tokenization;

/// <summary>Settings of rendering a prompt for inference.</summary>
/// <param name="System">System prompt of the setting <c>system</c>; null when not given, empty removes the system block.</param>
/// <param name="ResponsePrefix">Beginning of the answer; null takes the template's, empty asks for none.</param>
/// <param name="EnableThinking">False asks for an answer without thinking; null and true leave it to the model.</param>
public sealed record PromptOptions(string? System = null, string? ResponsePrefix = null, bool? EnableThinking = null);
