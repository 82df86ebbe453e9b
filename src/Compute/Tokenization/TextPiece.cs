namespace Megatron.Compute.Tokenization;

/// <summary>
/// A stretch of rendered text that is tokenized on its own. Borders between pieces are token borders, so they are part of what a model
/// learns.
/// </summary>
/// <param name="Text">The text, special tokens written out.</param>
/// <param name="Weight">Loss weight of its tokens; 0 means not learned.</param>
public sealed record TextPiece(string Text, float Weight);
