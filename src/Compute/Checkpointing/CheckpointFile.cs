namespace Megatron.Compute.Checkpointing;

/// <summary>A file of a checkpoint: name relative to its folder, length in bytes, XxHash128 in hexadecimal.</summary>
public sealed record CheckpointFile(string Name, long SizeBytes, string XxHash128);
