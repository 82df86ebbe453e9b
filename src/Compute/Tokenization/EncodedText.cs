namespace Megatron.Compute.Tokenization;

/// <summary>
/// A tokenized row before the shift by one: <c>Weights[i]</c> is the loss weight of predicting <c>Ids[i]</c> from what stands before it.
/// </summary>
/// <param name="Ids">Token ids [length].</param>
/// <param name="Weights">Loss weights [length]; 0 means not learned.</param>
public sealed record EncodedText(int[] Ids, float[] Weights);
