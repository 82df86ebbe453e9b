using System.Text.Json;

namespace Megatron.Compute.Data.Streaming;

/// <summary>
/// Where a stream stands between two global batches: the state at the beginning of the window whose packs are being given out, and how many of them
/// are gone. Small: it names rows by the numbers of their draws and holds no text.
/// </summary>
/// <param name="Epoch">Epoch of the first draw of the window.</param>
/// <param name="Draw">Number of that draw.</param>
/// <param name="NumTaken">Samples or packs of the window that have been given out.</param>
/// <param name="Pending">Samples that waited for the window.</param>
internal sealed record StreamCursor(long Epoch, long Draw, int NumTaken, IReadOnlyList<StreamCursor.Waiting> Pending)
{
    /// <summary>The beginning of the data.</summary>
    public static StreamCursor Beginning { get; } = new(0, 0, 0, []);

    /// <summary>A sample that waits to be packed.</summary>
    /// <param name="Epoch">Epoch of its row.</param>
    /// <param name="Draw">Draw of its row.</param>
    /// <param name="Part">Which of the row's samples.</param>
    /// <param name="NumWaits">Windows that it has waited.</param>
    public sealed record Waiting(long Epoch, long Draw, int Part, int NumWaits);

    /// <summary>As the text that a checkpoint holds.</summary>
    public override string ToString() => JsonSerializer.Serialize(this);

    /// <summary>From that text.</summary>
    /// <exception cref="Configuration.ConfigException">DATA032: it is none.</exception>
    public static StreamCursor Parse(string text)
    {
        try
        {
            if (JsonSerializer.Deserialize<StreamCursor>(text) is { Epoch: >= 0, Draw: >= 0, NumTaken: >= 0, Pending: not null } cursor) return cursor;
        }
        catch (JsonException)
        {
            // said below
        }
        throw new Configuration.ConfigException("DATA032", "the checkpoint's position in the stream of data cannot be read; continue with --no_load_rng true to begin the stream anew.");
    }
}
