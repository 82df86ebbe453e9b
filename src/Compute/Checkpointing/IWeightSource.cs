namespace Megatron.Compute.Checkpointing;

/// <summary>Type and shape of a weight that can be read.</summary>
/// <param name="DType">As it is stored.</param>
/// <param name="Shape">Whole Hugging Face shape.</param>
public sealed record WeightInfo(SafetensorsDType DType, long[] Shape);

/// <summary>
/// Whole weights by their Hugging Face names, whatever they are stored as: a Hugging Face folder, the slices of a checkpoint, a checkpoint of
/// Megatron-LM. Any piece can be read by itself, so a conversion needs no memory for whole tensors. Used by one thread at a time.
/// </summary>
public interface IWeightSource : IDisposable
{
    /// <summary>Where they lie; named in messages.</summary>
    string Folder { get; }

    /// <summary>Names of all weights.</summary>
    IReadOnlyCollection<string> Names { get; }

    /// <summary>Lengths and times of the files, as a text: another text means that something changed.</summary>
    string Fingerprint { get; }

    /// <summary>Type and shape; null when there is no such weight.</summary>
    WeightInfo? Find(string name);

    /// <summary>Reads consecutive elements, row-major, in the type they are stored in.</summary>
    /// <param name="name">A weight that <see cref="Find"/> knows.</param>
    /// <param name="begin">First element.</param>
    /// <param name="destination">A whole number of elements inside the weight.</param>
    /// <exception cref="Configuration.ConfigException">The files do not hold what they announce.</exception>
    void ReadElements(string name, long begin, Span<byte> destination);
}
