using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Sources;

namespace Megatron.Compute.Data.Streaming;

/// <summary>
/// The rows of one epoch of a stream, in their order: the data sets one after another or interleaved by probability, then a shuffle buffer. The order
/// depends on files, settings, seed and epoch only, and on no row's content; a row is known by the number of its draw. Memory holds the buffer and one
/// row of each set.
/// </summary>
internal sealed class RowStream : IDisposable
{
    private readonly SetReader[] _sets;
    private readonly StreamSettings _settings;
    private readonly DataRandom _mixing;
    private readonly DataRandom _shuffling;
    private readonly List<SourceRow> _buffer = [];
    private int _current;
    private bool _isUsedUp;

    /// <param name="settings">Data sets and how they are mixed.</param>
    /// <param name="epoch">0-based pass over the data.</param>
    public RowStream(StreamSettings settings, long epoch)
    {
        _settings = settings;
        Epoch = epoch;
        _mixing = new DataRandom(settings.Seed, "stream interleave", epoch);
        _shuffling = new DataRandom(settings.Seed, "stream shuffle", epoch);
        _sets = [.. settings.Sets.Select((set, index) => new SetReader(set) { IsUsedUp = settings is { UntilAll: true } && settings.Probabilities.Count > 0 && settings.Probabilities[index] == 0 })];
    }

    /// <summary>0-based pass over the data.</summary>
    public long Epoch { get; }

    /// <summary>Rows given so far: the number of the next draw.</summary>
    public long NumDrawn { get; private set; }

    /// <summary>Draws the next row; false at the end of the epoch.</summary>
    /// <exception cref="ConfigException">A file cannot be read.</exception>
    public bool TryDraw(out SourceRow row)
    {
        while (_buffer.Count < Math.Max(1, _settings.ShuffleBufferSize) && TryReadNext(out var next)) _buffer.Add(next);
        row = default;
        if (_buffer.Count == 0) return false;
        // The hole is filled from the end: removing costs nothing, and the order is a function of the random numbers alone.
        var pick = _settings.ShuffleBufferSize > 1 ? _shuffling.NextInt(_buffer.Count) : 0;
        row = _buffer[pick];
        _buffer[pick] = _buffer[^1];
        _buffer.RemoveAt(_buffer.Count - 1);
        NumDrawn++;
        return true;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var set in _sets) set.Dispose();
    }

    private bool TryReadNext(out SourceRow row) => _settings.Probabilities.Count == 0 ? TryReadInTurn(out row) : TryReadMixed(out row);

    private bool TryReadInTurn(out SourceRow row)
    {
        for (; _current < _sets.Length; _current++)
            if (_sets[_current].TryRead(out row)) return true;
        row = default;
        return false;
    }

    private bool TryReadMixed(out SourceRow row)
    {
        row = default;
        if (_isUsedUp) return false;
        var set = _sets[RowMix.Draw(_settings.Probabilities, _mixing)];
        if (!set.TryRead(out row)) return false; // an empty set
        // A set counts as used up with its last row, so that the mix is that of data in memory.
        if (!set.HasMore)
        {
            set.IsUsedUp = true;
            set.Restart();
        }
        _isUsedUp = _settings.UntilAll ? Array.TrueForAll(_sets, each => each.IsUsedUp) : set.IsUsedUp;
        return true;
    }

    /// <summary>The first rows of one data set, one file after another, one row ahead.</summary>
    private sealed class SetReader(DatasetSpec spec) : IDisposable
    {
        private IRowReader? _reader;
        private int _file;
        private int _numRead;
        private SourceRow? _ahead;
        private bool _isStarted;

        public bool IsUsedUp { get; set; }

        public bool HasMore
        {
            get
            {
                if (!_isStarted) ReadAhead();
                return _ahead is not null;
            }
        }

        public bool TryRead(out SourceRow row)
        {
            var has = HasMore;
            row = _ahead ?? default;
            if (has) ReadAhead();
            return has;
        }

        public void Restart()
        {
            Dispose();
            (_file, _numRead, _isStarted) = (0, 0, false);
        }

        public void Dispose()
        {
            _reader?.Dispose();
            _reader = null;
        }

        private void ReadAhead()
        {
            _isStarted = true;
            _ahead = null;
            if (_numRead >= (spec.NumRows ?? int.MaxValue)) return;
            while (_reader is not null || _file < spec.Files.Count)
            {
                _reader ??= RowSources.Open(spec.Files[_file++]);
                if (_reader.TryRead(out var row))
                {
                    _ahead = row;
                    _numRead++;
                    return;
                }
                Dispose();
            }
        }
    }
}

/// <summary>What a stream reads and in what order.</summary>
/// <param name="Sets">Data sets; of one with a count the first rows are read.</param>
/// <param name="Probabilities">One for each set, or none: one set after another.</param>
/// <param name="UntilAll">An interleaved epoch ends when every set, not when the first set, is used up.</param>
/// <param name="ShuffleBufferSize">Rows among which the next one is drawn; 1 keeps the order.</param>
/// <param name="Seed"><c>data_seed</c>.</param>
internal sealed record StreamSettings(IReadOnlyList<DatasetSpec> Sets, IReadOnlyList<double> Probabilities, bool UntilAll, int ShuffleBufferSize, ulong Seed);
